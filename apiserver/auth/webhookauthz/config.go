package webhookauthz

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/cel-go/cel"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/apiserver/pkg/cel/environment"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/configfile"
)

// Load reads an AuthorizationConfiguration from a YAML file and returns the chain
// that it describes, of the Node and RBAC authorizers given and of webhooks.
func Load(ctx context.Context, file string, node auth.Authorizer, rbac *auth.RBAC, log *slog.Logger) (*auth.Chain, error) {
	c := &apiserverv1.AuthorizationConfiguration{}
	if err := configfile.Read(file, "authorization configuration", apiserverv1.SchemeGroupVersion.String(), "AuthorizationConfiguration", c); err != nil {
		return nil, err
	}
	chain, err := New(ctx, c, node, rbac, log)
	if err != nil {
		return nil, fmt.Errorf("authorization configuration %s: %w", file, err)
	}
	return chain, nil
}

// New returns the chain that a configuration describes.
func New(ctx context.Context, c *apiserverv1.AuthorizationConfiguration, node auth.Authorizer, rbac *auth.RBAC, log *slog.Logger) (*auth.Chain, error) {
	chain := &auth.Chain{RBAC: rbac, Context: ctx}
	path := field.NewPath("authorizers")
	if len(c.Authorizers) == 0 {
		return nil, field.Required(path, "at least one authorization mode must be defined")
	}
	seen := map[string]bool{}
	for i := range c.Authorizers {
		a, at := &c.Authorizers[i], path.Index(i)
		if seen[a.Name] || a.Name == "" {
			return nil, field.Invalid(at.Child("name"), a.Name, "must be there and its own")
		}
		seen[a.Name] = true
		switch a.Type {
		case "Node":
			chain.Steps = append(chain.Steps, node)
		case "RBAC":
			chain.Steps = append(chain.Steps, rbac)
		case "Webhook":
			if err := complete(a.Webhook, at.Child("webhook")); err != nil {
				return nil, err
			}
			w, err := newWebhook(a.Name, a.Webhook, log)
			if err != nil {
				return nil, err
			}
			chain.Steps = append(chain.Steps, w)
		default:
			return nil, field.NotSupported(at.Child("type"), string(a.Type), []string{"Node", "RBAC", "Webhook"})
		}
	}
	return chain, nil
}

// complete checks a webhook and fills what it leaves out.
func complete(w *apiserverv1.WebhookConfiguration, at *field.Path) error {
	switch {
	case w == nil:
		return field.Required(at, "required when type=Webhook")
	case w.Timeout.Duration <= 0 || w.Timeout.Duration > 30*time.Second:
		return field.Invalid(at.Child("timeout"), w.Timeout.Duration.String(), "must be > 0s and <= 30s")
	case w.SubjectAccessReviewVersion != "v1":
		return field.NotSupported(at.Child("subjectAccessReviewVersion"), w.SubjectAccessReviewVersion, []string{"v1"})
	case w.MatchConditionSubjectAccessReviewVersion != "v1" && len(w.MatchConditions) > 0:
		return field.NotSupported(at.Child("matchConditionSubjectAccessReviewVersion"), w.MatchConditionSubjectAccessReviewVersion, []string{"v1"})
	case w.FailurePolicy != apiserverv1.FailurePolicyNoOpinion && w.FailurePolicy != apiserverv1.FailurePolicyDeny:
		return field.NotSupported(at.Child("failurePolicy"), w.FailurePolicy, []string{apiserverv1.FailurePolicyNoOpinion, apiserverv1.FailurePolicyDeny})
	case w.ConnectionInfo.Type != apiserverv1.AuthorizationWebhookConnectionInfoTypeKubeConfigFile || w.ConnectionInfo.KubeConfigFile == nil:
		return field.Invalid(at.Child("connectionInfo"), w.ConnectionInfo.Type, "type must be KubeConfigFile, with the path in kubeConfigFile")
	}
	if w.AuthorizedTTL.Duration == 0 {
		w.AuthorizedTTL.Duration = defaultAllowedFor
	}
	if w.UnauthorizedTTL.Duration == 0 {
		w.UnauthorizedTTL.Duration = defaultRefusedFor
	}
	return nil
}

func compile(conditions []apiserverv1.WebhookMatchCondition) (out []cel.Program, err error) {
	if len(conditions) == 0 {
		return nil, nil
	}
	env, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).Env(environment.NewExpressions)
	if err != nil {
		return nil, err
	}
	if env, err = env.Extend(cel.Variable("request", cel.DynType)); err != nil {
		return nil, err
	}
	for i, c := range conditions {
		at := field.NewPath("matchConditions").Index(i).Child("expression")
		ast, issues := env.Compile(c.Expression)
		if issues.Err() != nil {
			return nil, field.Invalid(at, c.Expression, "compilation failed: "+issues.Err().Error())
		}
		p, err := env.Program(ast, cel.CostLimit(10_000_000))
		if err != nil {
			return nil, field.Invalid(at, c.Expression, err.Error())
		}
		out = append(out, p)
	}
	return out, nil
}
