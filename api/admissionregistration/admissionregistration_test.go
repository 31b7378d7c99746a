package admissionregistration_test

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api/admissionregistration"
	"knarr.dev/knarr/api/kind"
)

// verdict makes an object of YAML, fills its defaults and validates it.
func verdict(t *testing.T, k *kind.Kind, make func() kind.Object, text string) (kind.Object, []string) {
	t.Helper()
	o := make()
	if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	k.Default(o)
	var out []string
	for _, e := range k.Validate(o) {
		out = append(out, e.Error())
	}
	return o, out
}

// same compares messages; a wanted one that ends in "…" is a beginning.
func same(t *testing.T, got, want []string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := 0; ok && i < len(got); i++ {
		begin, open := strings.CutSuffix(want[i], "…")
		ok = got[i] == want[i] || open && strings.HasPrefix(got[i], begin)
	}
	if !ok {
		t.Errorf("errors\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

const goodHook = `
  name: a.example.com
  clientConfig: {url: "https://host/path"}
  sideEffects: None
  admissionReviewVersions: [v1]`

func TestWebhooks(t *testing.T) {
	for name, c := range map[string]struct {
		hook string
		want []string
	}{
		"good":              {goodHook, nil},
		"name":              {strings.Replace(goodHook, "a.example.com", "a.b", 1), []string{`webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots`}},
		"no client":         {strings.Replace(goodHook, `{url: "https://host/path"}`, "{}", 1), []string{"webhooks[0].clientConfig: Required value: exactly one of url or service is required"}},
		"both clients":      {strings.Replace(goodHook, `{url: "https://host/path"}`, `{url: "https://x", service: {name: a, namespace: b}}`, 1), []string{"webhooks[0].clientConfig: Required value: exactly one of url or service is required"}},
		"http":              {strings.Replace(goodHook, "https://host", "http://host", 1), []string{`webhooks[0].clientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]`}},
		"query":             {strings.Replace(goodHook, "/path", "/path?a=b", 1), []string{`webhooks[0].clientConfig.url: Invalid value: "a=b": query parameters are not permitted in the URL`}},
		"service path":      {strings.Replace(goodHook, `{url: "https://host/path"}`, `{service: {name: a, namespace: b, path: x//y, port: 0}}`, 1), []string{`webhooks[0].clientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive`, `webhooks[0].clientConfig.service.path: Invalid value: "x//y": must start with a '/'`, `webhooks[0].clientConfig.service.path: Invalid value: "x//y": segment[0] may not be empty`, `webhooks[0].clientConfig.service.path: Invalid value: "x//y": segment[1] may not be empty`}},
		"side effects":      {strings.Replace(goodHook, "None", "Some", 1), []string{`webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun"`}},
		"no side effects":   {strings.Replace(goodHook, "sideEffects: None", "timeoutSeconds: 1", 1), []string{"webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun"}},
		"timeout":           {goodHook + "\n  timeoutSeconds: 31", []string{"webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"}},
		"review versions":   {strings.Replace(goodHook, "[v1]", "[v2]", 1), []string{`webhooks[0].admissionReviewVersions: Invalid value: ["v2"]: must include at least one of v1, v1beta1`}},
		"no review version": {strings.Replace(goodHook, "[v1]", "[]", 1), []string{"webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1"}},
		"operation":         {goodHook + "\n  rules: [{operations: [READ], apiGroups: [''], apiVersions: [v1], resources: [pods]}]", []string{`webhooks[0].rules[0].operations[0]: Unsupported value: "READ": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE"`}},
		"all and more":      {goodHook + "\n  rules: [{operations: ['*', CREATE], apiGroups: ['*', a], apiVersions: ['*', v1], resources: ['*/*', pods]}]", []string{"webhooks[0].rules[0].operations: Invalid value: …", "webhooks[0].rules[0].apiGroups: Invalid value: …", "webhooks[0].rules[0].apiVersions: Invalid value: …", "webhooks[0].rules[0].resources: Invalid value: …"}},
		"empty rule":        {goodHook + "\n  rules: [{}]", []string{"webhooks[0].rules[0].operations: Required value", "webhooks[0].rules[0].apiGroups: Required value", "webhooks[0].rules[0].apiVersions: Required value", "webhooks[0].rules[0].resources: Required value"}},
		"condition":         {goodHook + "\n  matchConditions: [{name: c, expression: '... [] bad expression'}]", []string{`webhooks[0].matchConditions[0].expression: Invalid value: "... [] bad expression": compilation failed: …`}},
		"condition type":    {goodHook + "\n  matchConditions: [{name: c, expression: '1'}]", []string{`webhooks[0].matchConditions[0].expression: Invalid value: "1": must evaluate to bool but got int`}},
		"conditions":        {goodHook + "\n  matchConditions: [{name: c, expression: 'true'}, {name: c, expression: ''}]", []string{"webhooks[0].matchConditions[1].expression: Required value", `webhooks[0].matchConditions[1].name: Duplicate value: "c"`}},
	} {
		t.Run(name, func(t *testing.T) {
			text := "webhooks:\n- " + strings.TrimPrefix(c.hook, "\n  ")
			k := admissionregistration.ValidatingWebhookConfiguration()
			_, got := verdict(t, k, validatingConfig, text)
			same(t, got, c.want)
		})
	}
}

func TestWebhookDefaults(t *testing.T) {
	o, errs := verdict(t, admissionregistration.MutatingWebhookConfiguration(), mutatingConfig,
		"webhooks: [{name: a.b.c, clientConfig: {service: {name: s, namespace: n}}, sideEffects: None, admissionReviewVersions: [v1], rules: [{operations: ['*'], apiGroups: ['*'], apiVersions: ['*'], resources: ['*']}]}]")
	same(t, errs, nil)
	b, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"failurePolicy: Fail", "matchPolicy: Equivalent", "namespaceSelector: {}", "objectSelector: {}", "timeoutSeconds: 10", "port: 443", "scope: '*'", "reinvocationPolicy: Never"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}

const constraints = "matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [''], apiVersions: [v1], resources: [configmaps]}]}"

func TestValidatingPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		want []string
	}{
		"good":         {constraints + `, validations: [{expression: "variables.count > 1 && has(object.data) && params.x && authorizer.group('').resource('x').check('get').allowed()", messageExpression: "string(variables.count)", reason: Forbidden}], variables: [{name: count, expression: "2"}], paramKind: {apiVersion: v1, kind: ConfigMap}, auditAnnotations: [{key: k, valueExpression: "string(object.metadata.name)"}]`, nil},
		"nothing":      {"", []string{"spec.matchConstraints: Required value", "spec.validations: Required value: validations or auditAnnotations must contain at least one item", "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item"}},
		"expression":   {constraints + `, validations: [{expression: "object.x +"}]`, []string{"spec.validations[0].expression: Invalid value: \"object.x +\": compilation failed: …"}},
		"type":         {constraints + `, validations: [{expression: "'a'"}]`, []string{`spec.validations[0].expression: Invalid value: "'a'": must evaluate to bool but got string`}},
		"params":       {constraints + `, validations: [{expression: "params.x"}]`, []string{"spec.validations[0].expression: Invalid value: \"params.x\": compilation failed: …"}},
		"message":      {constraints + `, validations: [{expression: "true", message: "a\nb"}]`, []string{`spec.validations[0].message: Invalid value: "a\nb": must not contain line breaks`}},
		"reason":       {constraints + `, validations: [{expression: "true", reason: Sad}]`, []string{`spec.validations[0].reason: Unsupported value: "Sad": supported values: "Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"`}},
		"variables":    {constraints + `, validations: [{expression: "true"}], variables: [{name: b, expression: "variables.c"}, {name: c, expression: "1"}, {name: for, expression: "1"}]`, []string{"spec.variables[0].expression: Invalid value: \"variables.c\": compilation failed: …", `spec.variables[2].name: Invalid value: "for": must be a valid CEL identifier`}},
		"param kind":   {constraints + `, validations: [{expression: "true"}], paramKind: {apiVersion: a/b/c, kind: "x y"}`, []string{`spec.paramKind.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c`, `spec.paramKind.kind: Invalid value: "x y": may have mixed case, but should otherwise match: …`}},
		"audit":        {constraints + `, auditAnnotations: [{key: "a b", valueExpression: "'x'"}, {key: c, valueExpression: "1"}]`, []string{`spec.auditAnnotations[0].key: Invalid value: "p/a b": …`, `spec.auditAnnotations[1].valueExpression: Invalid value: "1": must evaluate to one of [string null_type] but got int`}},
		"match":        {`matchConstraints: {matchPolicy: Maybe, resourceRules: []}, validations: [{expression: "true"}]`, []string{`spec.matchConstraints.matchPolicy: Unsupported value: "Maybe": supported values: "Equivalent", "Exact"`, "spec.matchConstraints.resourceRules: Required value"}},
		"failure":      {constraints + `, failurePolicy: Hm, validations: [{expression: "true"}]`, []string{`spec.failurePolicy: Unsupported value: "Hm": supported values: "Fail", "Ignore"`}},
		"namesrepeat":  {strings.Replace(constraints, "{operations", "{resourceNames: [a, a], operations", 1) + `, validations: [{expression: "true"}]`, []string{`spec.matchConstraints.resourceRules[0].resourceNames[1]: Duplicate value: "a"`}},
		"no condition": {constraints + `, matchConditions: [{name: x, expression: "variables.x"}], validations: [{expression: "true"}]`, []string{"spec.matchConditions[0].expression: Invalid value: …"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, got := verdict(t, admissionregistration.ValidatingAdmissionPolicy(), validatingPolicy, "metadata: {name: p}\nspec: {"+c.spec+"}")
			same(t, got, c.want)
		})
	}
}

func TestMutatingPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		want []string
	}{
		"apply":  {constraints + `, reinvocationPolicy: Never, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}}]`, nil},
		"patch":  {constraints + `, reinvocationPolicy: IfNeeded, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'a': 'b'}}]"}}]`, nil},
		"empty":  {constraints, []string{`spec.reinvocationPolicy: Required value`, "spec.mutations: Required value: mutations must contain at least one item"}},
		"type":   {constraints + `, reinvocationPolicy: Never, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: "1"}}]`, []string{`spec.mutations[0].applyConfiguration.expression: Invalid value: "1": must evaluate to Object but got int`}},
		"which":  {constraints + `, reinvocationPolicy: Never, mutations: [{patchType: JSONPatch}]`, []string{"spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch"}},
		"delete": {strings.Replace(constraints, "CREATE", "DELETE", 1) + `, reinvocationPolicy: Never, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/data'}]"}}]`, []string{`spec.matchConstraints.resourceRules.operations: Unsupported value: "DELETE": supported values: "*", "CONNECT", "CREATE", "UPDATE"`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, got := verdict(t, admissionregistration.MutatingAdmissionPolicy(), mutatingPolicy, "metadata: {name: p}\nspec: {"+c.spec+"}")
			same(t, got, c.want)
		})
	}
}

func TestBindings(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		want []string
	}{
		"good":    {`policyName: p, validationActions: [Warn, Audit], paramRef: {name: x, parameterNotFoundAction: Deny}`, nil},
		"nothing": {``, []string{"spec.policyName: Required value", "spec.validationActions: Required value: at least one validation action is required"}},
		"actions": {`policyName: p, validationActions: [Deny, Warn, Deny, x]`, []string{`spec.validationActions[2]: Duplicate value: "Deny"`, `spec.validationActions[3]: Unsupported value: "x": supported values: "Audit", "Deny", "Warn"`, "spec.validationActions: Invalid value: …"}},
		"param":   {`policyName: p, validationActions: [Deny], paramRef: {name: x, selector: {}}`, []string{"spec.paramRef.name: Forbidden: name and selector are mutually exclusive", "spec.paramRef.selector: Forbidden: name and selector are mutually exclusive", "spec.paramRef.parameterNotFoundAction: Required value"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, got := verdict(t, admissionregistration.ValidatingAdmissionPolicyBinding(), validatingBinding, "metadata: {name: p}\nspec: {"+c.spec+"}")
			same(t, got, c.want)
		})
	}
}
