package policies_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	admv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/apitest"
)

type warnings struct{ texts []string }

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) { w.texts = append(w.texts, text) }

func start(t *testing.T) (*kubernetes.Clientset, *warnings) {
	t.Helper()
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "ns")
	cfg, w := s.Admin(t), &warnings{}
	cfg.WarningHandler = w
	return apitest.ClientOf(t, cfg), w
}

// apply creates the objects of a YAML text, given by their resources.
func apply(t *testing.T, c rest.Interface, resource, text string) {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Post().Resource(resource).Body(b).Do(t.Context()).Error(); err != nil {
		t.Fatalf("%s: %v", resource, err)
	}
}

const maps = "matchConstraints: {resourceRules: [{operations: [CREATE, UPDATE], apiGroups: [''], apiVersions: [v1], resources: [configmaps]}]}"

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"k": "v"}}, Data: data}
}

func TestValidating(t *testing.T) {
	const deny = "policyName: p, validationActions: [Deny]"
	for _, c := range []struct {
		name, spec, binding string
		want                string // in the error; empty: the request passes
		code                int32
		warning             string
	}{
		{name: "expression", spec: maps + `, validations: [{expression: "object.data.a == 'b'"}]`, binding: deny,
			want: `configmaps "x" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: object.data.a == 'b'`, code: 422},
		{name: "true", spec: maps + `, validations: [{expression: "object.data.a == 'c'"}]`, binding: deny},
		{name: "message", spec: maps + `, validations: [{expression: "false", message: sorry, reason: Unauthorized}]`, binding: deny, want: "denied request: sorry", code: 401},
		{name: "message expression", spec: maps + `, variables: [{name: who, expression: "object.metadata.name"}], validations: [{expression: "variables.who != 'x'", messageExpression: "'not ' + variables.who", reason: Forbidden}]`, binding: deny, want: "denied request: not x", code: 403},
		{name: "warn", spec: maps + `, validations: [{expression: "false"}]`, binding: "policyName: p, validationActions: [Warn, Audit]", warning: "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': failed expression: false"},
		{name: "error", spec: maps + `, validations: [{expression: "object.data.none == 'b'"}]`, binding: deny, want: "no such key: none", code: 422},
		{name: "error ignored", spec: maps + `, failurePolicy: Ignore, validations: [{expression: "object.data.none == 'b'"}]`, binding: deny},
		{name: "unbound", spec: maps + `, validations: [{expression: "false"}]`, binding: "policyName: other, validationActions: [Deny]"},
		{name: "condition", spec: maps + `, matchConditions: [{name: c, expression: "request.operation == 'UPDATE'"}], validations: [{expression: "false"}]`, binding: deny},
		{name: "binding elsewhere", spec: maps + `, validations: [{expression: "false"}]`, binding: deny + `, matchResources: {namespaceSelector: {matchLabels: {"kubernetes.io/metadata.name": other}}}`},
		{name: "binding here", spec: maps + `, validations: [{expression: "false"}]`, binding: deny + `, matchResources: {namespaceSelector: {matchLabels: {"kubernetes.io/metadata.name": ns}}, objectSelector: {matchLabels: {k: v}}}`, want: "failed expression: false", code: 422},
		{name: "named", spec: strings.Replace(maps, "{operations", "{resourceNames: [other], operations", 1) + `, validations: [{expression: "false"}]`, binding: deny},
		{name: "excluded", spec: strings.Replace(maps, "{resourceRules", "{excludeResourceRules: [{resourceNames: [x], operations: ['*'], apiGroups: ['*'], apiVersions: ['*'], resources: ['*']}], resourceRules", 1) + `, validations: [{expression: "false"}]`, binding: deny},
		{name: "params", spec: maps + `, paramKind: {apiVersion: v1, kind: ConfigMap}, validations: [{expression: "object.data.a == params.data.want", messageExpression: "'want ' + params.data.want"}]`, binding: deny + ", paramRef: {name: param, parameterNotFoundAction: Deny}", want: "want z", code: 422},
		{name: "params by label", spec: maps + `, paramKind: {apiVersion: v1, kind: ConfigMap}, validations: [{expression: "params.data.want == 'z' && object.data.a == params.data.want", messageExpression: "'want ' + params.data.want"}]`, binding: deny + ", paramRef: {selector: {matchLabels: {param: 'yes'}}, parameterNotFoundAction: Deny, namespace: ns}", want: "want z", code: 422},
		{name: "no param", spec: maps + `, paramKind: {apiVersion: v1, kind: ConfigMap}, validations: [{expression: "false"}]`, binding: deny + ", paramRef: {name: none, parameterNotFoundAction: Deny}", want: "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction", code: 422},
		{name: "no param allowed", spec: maps + `, paramKind: {apiVersion: v1, kind: ConfigMap}, validations: [{expression: "false"}]`, binding: deny + ", paramRef: {name: none, parameterNotFoundAction: Allow}"},
		{name: "unknown param kind", spec: maps + `, paramKind: {apiVersion: a.b/v1, kind: None}, validations: [{expression: "false"}]`, binding: deny + ", paramRef: {name: none, parameterNotFoundAction: Allow}", want: "failed to configure binding: paramKind kind", code: 422},
		{name: "namespace and authorizer", spec: maps + `, validations: [{expression: "namespaceObject.metadata.name != 'ns' || !authorizer.requestResource.check('delete').allowed()"}]`, binding: deny, want: "failed expression", code: 422},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl, w := start(t)
			ctx := t.Context()
			param := configMap("param", map[string]string{"want": "z"})
			param.Labels = map[string]string{"param": "yes"}
			if _, err := cl.CoreV1().ConfigMaps("ns").Create(ctx, param, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			rest := cl.AdmissionregistrationV1().RESTClient()
			apply(t, rest, "validatingadmissionpolicies", "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {name: p}, spec: {"+c.spec+"}}")
			apply(t, rest, "validatingadmissionpolicybindings", "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, metadata: {name: b}, spec: {"+c.binding+"}}")
			_, err := cl.CoreV1().ConfigMaps("ns").Create(ctx, configMap("x", map[string]string{"a": "c"}), metav1.CreateOptions{})
			if c.warning != "" && fmt.Sprint(w.texts) != "["+c.warning+"]" {
				t.Errorf("warnings %q, want %q", w.texts, c.warning)
			}
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			st, _ := err.(apierrors.APIStatus)
			if err == nil || !strings.Contains(err.Error(), c.want) || st.Status().Code != c.code {
				t.Errorf("error %v, want one that contains %q with code %d", err, c.want, c.code)
			}
		})
	}
}

func TestMutating(t *testing.T) {
	const bound = "policyName: p"
	for _, c := range []struct {
		name, spec, binding string
		want                string // of the data and labels
		fails               string
	}{
		{name: "apply", spec: maps + `, reinvocationPolicy: Never, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{metadata: Object.metadata{labels: Object.metadata.labels{new: 'l'}}}"}}]`, binding: bound, want: "map[a:c] map[k:v new:l]"},
		{name: "patch", spec: maps + `, reinvocationPolicy: Never, variables: [{name: v, expression: "'1'"}], mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'add', path: '/data/one', value: variables.v}]"}}, {patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'add', path: '/data/two', value: object.data.one + '2'}]"}}]`, binding: bound, want: "map[a:c one:1 two:12] map[k:v]"},
		{name: "condition", spec: maps + `, reinvocationPolicy: Never, matchConditions: [{name: c, expression: "object.metadata.name != 'x'"}], mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/data'}]"}}]`, binding: bound, want: "map[a:c] map[k:v]"},
		{name: "elsewhere", spec: maps + `, reinvocationPolicy: Never, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/data'}]"}}]`, binding: bound + ", matchResources: {namespaceSelector: {matchLabels: {a: b}}}", want: "map[a:c] map[k:v]"},
		{name: "fails", spec: maps + `, reinvocationPolicy: Never, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/none/x'}]"}}]`, binding: bound, fails: "policy 'p' with binding 'b' denied request: JSON Patch: "},
		{name: "failure ignored", spec: maps + `, failurePolicy: Ignore, reinvocationPolicy: Never, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/none/x'}]"}}]`, binding: bound, want: "map[a:c] map[k:v]"},
		{name: "params", spec: maps + `, reinvocationPolicy: IfNeeded, paramKind: {apiVersion: v1, kind: ConfigMap}, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'add', path: '/data/p', value: params.data.want}]"}}]`, binding: bound + ", paramRef: {name: param, parameterNotFoundAction: Deny}", want: "map[a:c p:z] map[k:v]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl, _ := start(t)
			ctx := t.Context()
			if _, err := cl.CoreV1().ConfigMaps("ns").Create(ctx, configMap("param", map[string]string{"want": "z"}), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			rest := cl.AdmissionregistrationV1().RESTClient()
			apply(t, rest, "mutatingadmissionpolicies", "{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingAdmissionPolicy, metadata: {name: p}, spec: {"+c.spec+"}}")
			apply(t, rest, "mutatingadmissionpolicybindings", "{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingAdmissionPolicyBinding, metadata: {name: b}, spec: {"+c.binding+"}}")
			o, err := cl.CoreV1().ConfigMaps("ns").Create(ctx, configMap("x", map[string]string{"a": "c"}), metav1.CreateOptions{})
			if c.fails != "" {
				if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("error %v, want one that contains %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(o.Data, o.Labels); got != c.want {
				t.Errorf("data and labels %s, want %s", got, c.want)
			}
		})
	}
}

// A write costs next to nothing more when a hundred policies are for others.
func BenchmarkUnconcerned(b *testing.B) {
	for _, n := range []int{0, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := apitest.Start(b, apitest.Options{Unwatched: true})
			s.Namespace(b, "ns")
			c := s.Client(b)
			for i := range n {
				policy(b, c, i)
			}
			m, err := c.CoreV1().ConfigMaps("ns").Create(b.Context(), configMap("x", nil), metav1.CreateOptions{})
			if err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				m.Data = map[string]string{"n": fmt.Sprint(i)}
				if m, err = c.CoreV1().ConfigMaps("ns").Update(context.Background(), m, metav1.UpdateOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func policy(b *testing.B, c *kubernetes.Clientset, i int) {
	b.Helper()
	name := fmt.Sprintf("p%d", i)
	p := &admv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admv1.MatchResources{ResourceRules: []admv1.NamedRuleWithOperations{{RuleWithOperations: admv1.RuleWithOperations{
			Operations: []admv1.OperationType{admv1.Create}, Rule: admv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}}}}}},
		Validations: []admv1.Validation{{Expression: "false"}},
	}}
	if _, err := c.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(b.Context(), p, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	bind := &admv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: name, ValidationActions: []admv1.ValidationAction{admv1.Deny}}}
	if _, err := c.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(b.Context(), bind, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
}
