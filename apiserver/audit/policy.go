// Package audit writes down who did what to the API: events of audit.k8s.io/v1,
// as a policy demands them, to a file and to a webhook.
//
//	request ─> policy ─> level, stages ─> Trail ─> events ─> log, webhook
//
// A request that the policy does not want costs one look at its rules; without a
// policy there is no Auditor, and nothing is asked.
package audit

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/auth"
)

// LoadPolicy reads an audit.k8s.io/v1 Policy from a YAML or JSON file.
func LoadPolicy(file string) (*auditv1.Policy, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("audit policy: %w", err)
	}
	p, err := ParsePolicy(b)
	if err != nil {
		return nil, fmt.Errorf("audit policy %s: %w", file, err)
	}
	return p, nil
}

// ParsePolicy reads and checks a Policy.
func ParsePolicy(b []byte) (*auditv1.Policy, error) {
	p := &auditv1.Policy{}
	if err := yaml.UnmarshalStrict(b, p); err != nil {
		return nil, err
	}
	if p.APIVersion != auditv1.SchemeGroupVersion.String() || p.Kind != "Policy" {
		return nil, fmt.Errorf("want apiVersion %s and kind Policy, have %q and %q", auditv1.SchemeGroupVersion, p.APIVersion, p.Kind)
	}
	if len(p.Rules) == 0 {
		return nil, errors.New("loaded illegal policy with 0 rules: write at least one, such as \"level: Metadata\"")
	}
	return p, validate(p).ToAggregate()
}

var (
	levels = []auditv1.Level{auditv1.LevelNone, auditv1.LevelMetadata, auditv1.LevelRequest, auditv1.LevelRequestResponse}
	stages = []auditv1.Stage{auditv1.StageRequestReceived, auditv1.StageResponseStarted, auditv1.StageResponseComplete, auditv1.StagePanic}
)

func validate(p *auditv1.Policy) (errs field.ErrorList) {
	checkStages := func(list []auditv1.Stage, path *field.Path) {
		for i, s := range list {
			if !slices.Contains(stages, s) {
				errs = append(errs, field.Invalid(path.Index(i), s, fmt.Sprintf("allowed stages are %v", stages)))
			}
		}
	}
	checkStages(p.OmitStages, field.NewPath("omitStages"))
	for i := range p.Rules {
		r, path := &p.Rules[i], field.NewPath("rules").Index(i)
		switch {
		case r.Level == "":
			errs = append(errs, field.Required(path.Child("level"), ""))
		case !slices.Contains(levels, r.Level):
			errs = append(errs, field.NotSupported(path.Child("level"), r.Level, levels))
		}
		if len(r.NonResourceURLs) > 0 && (len(r.Resources) > 0 || len(r.Namespaces) > 0) {
			errs = append(errs, field.Invalid(path.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
		}
		for j, u := range r.NonResourceURLs {
			if u != "*" && !strings.HasPrefix(u, "/") {
				errs = append(errs, field.Invalid(path.Child("nonResourceURLs").Index(j), u, "non-resource URL rules must begin with a '/' character"))
			} else if strings.Contains(strings.TrimSuffix(u, "*"), "*") {
				errs = append(errs, field.Invalid(path.Child("nonResourceURLs").Index(j), u, "non-resource URL wildcards '*' must be the final character of the rule"))
			}
		}
		for j, g := range r.Resources {
			if len(g.ResourceNames) > 0 && len(g.Resources) == 0 {
				errs = append(errs, field.Invalid(path.Child("resources").Index(j).Child("resourceNames"), g.ResourceNames, "using resourceNames requires at least one resource"))
			}
		}
		checkStages(r.OmitStages, path.Child("omitStages"))
	}
	return errs
}

// verdict is what a policy says of a request.
type verdict struct {
	level             auditv1.Level
	omit              []auditv1.Stage
	omitManagedFields bool
}

// judge returns the first rule's that matches; None if there is none.
func judge(p *auditv1.Policy, user *authenticationv1.UserInfo, a *auth.Action) verdict {
	for i := range p.Rules {
		r := &p.Rules[i]
		if !ruleMatches(r, user, a) {
			continue
		}
		v := verdict{level: r.Level, omit: p.OmitStages, omitManagedFields: p.OmitManagedFields}
		if len(r.OmitStages) > 0 {
			v.omit = append(slices.Clone(p.OmitStages), r.OmitStages...)
		}
		if r.OmitManagedFields != nil {
			v.omitManagedFields = *r.OmitManagedFields
		}
		return v
	}
	return verdict{level: auditv1.LevelNone}
}

func ruleMatches(r *auditv1.PolicyRule, user *authenticationv1.UserInfo, a *auth.Action) bool {
	if len(r.Users) > 0 && !slices.Contains(r.Users, user.Username) ||
		len(r.UserGroups) > 0 && !slices.ContainsFunc(r.UserGroups, func(g string) bool { return slices.Contains(user.Groups, g) }) ||
		len(r.Verbs) > 0 && !slices.Contains(r.Verbs, a.Verb) {
		return false
	}
	if len(r.Namespaces) > 0 || len(r.Resources) > 0 {
		return a.IsResource() && resourceMatches(r, a)
	}
	if len(r.NonResourceURLs) > 0 {
		return !a.IsResource() && slices.ContainsFunc(r.NonResourceURLs, func(u string) bool {
			if prefix, ok := strings.CutSuffix(u, "*"); ok {
				return strings.HasPrefix(a.Path, prefix)
			}
			return u == a.Path
		})
	}
	return true
}

func resourceMatches(r *auditv1.PolicyRule, a *auth.Action) bool {
	if len(r.Namespaces) > 0 && !slices.Contains(r.Namespaces, a.Namespace) {
		return false
	}
	if len(r.Resources) == 0 {
		return true
	}
	combined := a.Resource
	if a.Subresource != "" {
		combined += "/" + a.Subresource
	}
	for _, g := range r.Resources {
		if g.Group != a.Group {
			continue
		}
		if len(g.Resources) == 0 {
			return true
		}
		if len(g.ResourceNames) > 0 && !slices.Contains(g.ResourceNames, a.Name) {
			continue
		}
		for _, res := range g.Resources {
			if res == combined || res == "*" || res == "*/*" {
				return true
			}
			if sub, ok := strings.CutPrefix(res, "*/"); ok && sub == a.Subresource && sub != "" {
				return true
			}
			if base, ok := strings.CutSuffix(res, "/*"); ok && base == a.Resource && a.Subresource != "" {
				return true
			}
		}
	}
	return false
}
