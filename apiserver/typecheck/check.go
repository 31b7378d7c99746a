package typecheck

import (
	"fmt"
	"slices"
	"strings"

	celgo "github.com/google/cel-go/cel"
	admv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/library"
	celopenapi "k8s.io/apiserver/pkg/cel/openapi"

	"knarr.dev/knarr/api/expression"
)

// maxTypes bounds the types that one policy is checked against.
const maxTypes = 10

// check returns what is wrong with a policy's expressions, by the types that its
// rules name one by one; rules with wildcards name none.
func (c *Checker) check(p *admv1.ValidatingAdmissionPolicy) []admv1.ExpressionWarning {
	var params *cel.DeclType
	if k := p.Spec.ParamKind; k != nil {
		params = c.declare(schema.FromAPIVersionAndKind(k.APIVersion, k.Kind), "params")
	}
	type checked struct {
		gvk schema.GroupVersionKind
		env *celgo.Env
		err error
	}
	var types []checked
	for i, gvk := range c.kinds(p) {
		if object := c.declare(gvk, fmt.Sprintf("object%d", i)); object != nil {
			env, err := environmentOf(object, params, &p.Spec)
			types = append(types, checked{gvk, env, err})
		}
	}
	var out []admv1.ExpressionWarning
	inspect := func(at *field.Path, text string) {
		var lines []string
		for _, t := range types {
			if t.err != nil {
				lines = append(lines, fmt.Sprintf("%v: type checking error: %v\n", t.gvk, t.err))
			} else if _, issues := t.env.Compile(text); issues != nil {
				lines = append(lines, fmt.Sprintf("%v: %s\n", t.gvk, issues))
			}
		}
		if len(lines) > 0 {
			out = append(out, admv1.ExpressionWarning{FieldRef: at.String(), Warning: strings.Join(lines, "\n")})
		}
	}
	for i, v := range p.Spec.Validations {
		at := field.NewPath("spec", "validations").Index(i)
		inspect(at.Child("expression"), v.Expression)
		if v.MessageExpression != "" {
			inspect(at.Child("messageExpression"), v.MessageExpression)
		}
	}
	return out
}

// kinds are those that a policy's rules name, in order.
func (c *Checker) kinds(p *admv1.ValidatingAdmissionPolicy) (out []schema.GroupVersionKind) {
	if p.Spec.MatchConstraints == nil {
		return nil
	}
	for _, r := range p.Spec.MatchConstraints.ResourceRules {
		if wild(r.APIGroups) || wild(r.APIVersions) {
			continue
		}
		for _, g := range r.APIGroups {
			for _, v := range r.APIVersions {
				for _, name := range r.Resources {
					res := c.reg.Resource(schema.GroupVersionResource{Group: g, Version: v, Resource: name})
					if res != nil && !slices.Contains(out, res.GVK()) {
						out = append(out, res.GVK())
					}
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	return out[:min(len(out), maxTypes)]
}

func wild(list []string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, "*") })
}

// declare makes a CEL type of a kind; nil if the kind is not known.
func (c *Checker) declare(gvk schema.GroupVersionKind, name string) *cel.DeclType {
	s, err := c.schema(gvk)
	if err != nil {
		return nil
	}
	t := common.SchemaDeclType(&celopenapi.Schema{Schema: s}, true)
	if t == nil {
		return nil
	}
	return t.MaybeAssignTypeName(name + gvk.Kind)
}

// environmentOf is what the expressions of a policy may use, for one type of
// objects. Its variables have the types of their expressions.
func environmentOf(object, params *cel.DeclType, s *admv1.ValidatingAdmissionPolicySpec) (*celgo.Env, error) {
	namespace, request := plugincel.BuildNamespaceType(), plugincel.BuildRequestType()
	types := []*cel.DeclType{namespace, request, object}
	vars := []celgo.EnvOption{
		celgo.Variable(plugincel.NamespaceVarName, namespace.CelType()), celgo.Variable(plugincel.RequestVarName, request.CelType()),
		celgo.Variable(plugincel.ObjectVarName, object.CelType()), celgo.Variable(plugincel.OldObjectVarName, object.CelType()),
		celgo.Variable(plugincel.AuthorizerVarName, library.AuthorizerType),
		celgo.Variable(plugincel.RequestResourceAuthorizerVarName, library.ResourceCheckType),
	}
	if s.ParamKind != nil {
		t := celgo.DynType
		if params != nil {
			t, types = params.CelType(), append(types, params)
		}
		vars = append(vars, celgo.Variable(plugincel.ParamsVarName, t))
	}
	set, err := expression.Env().Extend(environment.VersionedOptions{IntroducedVersion: version.MajorMinor(1, 0), EnvOptions: vars, DeclTypes: types})
	if err != nil {
		return nil, err
	}
	c, err := plugincel.NewCompositedCompilerForTypeChecking(set)
	if err != nil {
		return nil, err
	}
	c.Compiler = inferrer{c}
	for _, v := range s.Variables {
		c.CompileAndStoreVariable(&expression.Expression{Name: v.Name, Text: v.Expression}, plugincel.OptionalVariableDeclarations{}, environment.StoredExpressions)
	}
	return c.Env(environment.StoredExpressions)
}

// inferrer finds the types of variables; it makes no programs.
type inferrer struct{ *plugincel.CompositedCompiler }

// CompileCELExpression implements plugincel.Compiler.
func (i inferrer) CompileCELExpression(e plugincel.ExpressionAccessor, _ plugincel.OptionalVariableDeclarations, mode environment.Type) plugincel.CompilationResult {
	r := plugincel.CompilationResult{ExpressionAccessor: e, OutputType: celgo.DynType}
	env, err := i.Env(mode)
	if err != nil {
		return r
	}
	if ast, issues := env.Compile(e.GetExpression()); issues == nil {
		r.OutputType = ast.OutputType()
	}
	return r
}
