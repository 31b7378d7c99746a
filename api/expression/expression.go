// Package expression compiles the CEL expressions of admission: the one place
// that knows which variables and functions they may use. The environments cost
// tens of milliseconds, so they are made when the first expression is compiled.
//
// See https://kubernetes.io/docs/reference/using-api/cel/
package expression

import (
	"strings"
	"sync"

	celgo "github.com/google/cel-go/cel"
	"k8s.io/apimachinery/pkg/util/validation/field"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

// Env is the base environment of all expressions.
var Env = sync.OnceValue(func() *environment.EnvSet {
	return environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
})

var compiler = sync.OnceValue(func() plugincel.ConditionCompiler { return plugincel.NewConditionCompiler(Env()) })

var single = sync.OnceValue(func() plugincel.Compiler { return plugincel.NewCompiler(Env()) })

// Expression is an expression and what it must return.
type Expression struct {
	Name    string // of a variable or condition; empty for others
	Text    string
	Returns []*celgo.Type
}

var _ plugincel.NamedExpressionAccessor = (*Expression)(nil)

// GetName implements plugincel.NamedExpressionAccessor.
func (e *Expression) GetName() string { return e.Name }

// GetExpression implements plugincel.ExpressionAccessor.
func (e *Expression) GetExpression() string { return e.Text }

// ReturnTypes implements plugincel.ExpressionAccessor.
func (e *Expression) ReturnTypes() []*celgo.Type { return e.Returns }

// Of returns an expression of the given result types.
func Of(text string, returns ...*celgo.Type) *Expression {
	return &Expression{Text: text, Returns: returns}
}

// Conditions returns the compiler of expressions without variables of their own.
func Conditions() plugincel.ConditionCompiler { return compiler() }

// Composited returns a compiler for the expressions of one policy, which may use
// the policy's variables.
func Composited() (*plugincel.CompositedCompiler, error) {
	return plugincel.NewCompositedCompiler(Env())
}

// Options are the optional variables that all admission expressions may use.
func Options(params, authorizer bool) plugincel.OptionalVariableDeclarations {
	return plugincel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: authorizer}
}

// Check compiles an expression for a new object.
func Check(e *Expression, o plugincel.OptionalVariableDeclarations, at *field.Path) field.ErrorList {
	return CheckWith(single(), e, o, at)
}

// CheckWith is Check with a compiler that knows a policy's variables.
func CheckWith(c plugincel.Compiler, e *Expression, o plugincel.OptionalVariableDeclarations, at *field.Path) field.ErrorList {
	if strings.TrimSpace(e.Text) == "" {
		return field.ErrorList{field.Required(at, "expression is not specified")}
	}
	return Errors(c.CompileCELExpression(e, o, environment.NewExpressions), at)
}

// Errors is the verdict of a compilation.
func Errors(r plugincel.CompilationResult, at *field.Path) field.ErrorList {
	if r.Error == nil {
		return nil
	}
	switch r.Error.Type {
	case cel.ErrorTypeRequired:
		return field.ErrorList{field.Required(at, r.Error.Detail)}
	case cel.ErrorTypeInternal:
		return field.ErrorList{field.InternalError(at, r.Error)}
	}
	text := ""
	if r.ExpressionAccessor != nil {
		text = r.ExpressionAccessor.GetExpression()
	}
	return field.ErrorList{field.Invalid(at, text, r.Error.Detail)}
}
