package flowcontrol

import (
	"fmt"
	"math"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

const (
	maxPrecedence = 10000
	maxQueues     = 10 * 1000 * 1000
	all           = "*"
)

var verbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"}

func validateSchema(f *flowcontrolv1.FlowSchema) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if f.Name == "exempt" && (f.Spec.MatchingPrecedence != 1 || f.Spec.PriorityLevelConfiguration.Name != "exempt") {
		errs = append(errs, field.Invalid(spec, f.Spec, "spec of 'exempt' must equal the fixed value"))
	}
	switch p := f.Spec.MatchingPrecedence; {
	case p <= 0:
		errs = append(errs, field.Invalid(spec.Child("matchingPrecedence"), p, "must be a positive value"))
	case p > maxPrecedence:
		errs = append(errs, field.Invalid(spec.Child("matchingPrecedence"), p, fmt.Sprintf("must not be greater than %d", maxPrecedence)))
	}
	if p := f.Spec.MatchingPrecedence; p == 1 && f.Name != "exempt" {
		errs = append(errs, field.Invalid(spec.Child("matchingPrecedence"), p, "only the schema named 'exempt' may have matchingPrecedence 1"))
	}
	if d := f.Spec.DistinguisherMethod; d != nil {
		errs = append(errs, check.OneOf(spec.Child("distinguisherMethod").Child("type"), d.Type, flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType)...)
	}
	at := spec.Child("priorityLevelConfiguration").Child("name")
	if name := f.Spec.PriorityLevelConfiguration.Name; name == "" {
		errs = append(errs, field.Required(at, "must reference a priority level"))
	} else {
		errs = append(errs, check.Each(at, name, validation.NameIsDNSSubdomain(name, false))...)
	}
	for i := range f.Spec.Rules {
		errs = append(errs, validateRule(spec.Child("rules").Index(i), &f.Spec.Rules[i])...)
	}
	return errs
}

func validateRule(at *field.Path, r *flowcontrolv1.PolicyRulesWithSubjects) field.ErrorList {
	var errs field.ErrorList
	if len(r.Subjects) == 0 {
		errs = append(errs, field.Required(at.Child("subjects"), "subjects must contain at least one value"))
	}
	for i := range r.Subjects {
		errs = append(errs, validateSubject(at.Child("subjects").Index(i), &r.Subjects[i])...)
	}
	if len(r.ResourceRules) == 0 && len(r.NonResourceRules) == 0 {
		errs = append(errs, field.Required(at, "at least one of resourceRules and nonResourceRules has to be non-empty"))
	}
	for i := range r.ResourceRules {
		errs = append(errs, validateResourceRule(at.Child("resourceRules").Index(i), &r.ResourceRules[i])...)
	}
	for i, n := range r.NonResourceRules {
		p := at.Child("nonResourceRules").Index(i)
		errs = append(errs, validateVerbs(p.Child("verbs"), n.Verbs)...)
		errs = append(errs, validateWords(p.Child("nonResourceURLs"), n.NonResourceURLs, "values", "nonResourceURLs must contain at least one value")...)
		for j, u := range n.NonResourceURLs {
			if msg := badURL(u); msg != "" {
				errs = append(errs, field.Invalid(p.Child("nonResourceURLs").Index(j), u, msg))
			}
		}
	}
	return errs
}

func badURL(u string) string {
	switch {
	case u == all:
		return ""
	case !strings.HasPrefix(u, "/"):
		return "must start with slash"
	case strings.Contains(u, " "):
		return "must not contain white-space"
	case strings.Contains(u, "//"):
		return "must not contain double slash"
	case strings.Contains(strings.TrimSuffix(u, "/*"), all):
		return "wildcard can only do suffix matching"
	}
	return ""
}

func validateSubject(at *field.Path, s *flowcontrolv1.Subject) field.ErrorList {
	var errs field.ErrorList
	one := func(kind flowcontrolv1.SubjectKind, child string, set bool) {
		switch {
		case s.Kind == kind && !set:
			errs = append(errs, field.Required(at.Child(child), fmt.Sprintf("%s is required when subject kind is '%s'", child, kind)))
		case s.Kind != kind && set:
			errs = append(errs, field.Forbidden(at.Child(child), fmt.Sprintf("%s is forbidden when subject kind is not '%s'", child, kind)))
		}
	}
	errs = append(errs, check.OneOf(at.Child("kind"), s.Kind, flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser)...)
	if len(errs) > 0 {
		return errs
	}
	one(flowcontrolv1.SubjectKindServiceAccount, "serviceAccount", s.ServiceAccount != nil)
	one(flowcontrolv1.SubjectKindUser, "user", s.User != nil)
	one(flowcontrolv1.SubjectKindGroup, "group", s.Group != nil)
	switch {
	case s.User != nil && s.User.Name == "":
		errs = append(errs, field.Required(at.Child("user").Child("name"), ""))
	case s.Group != nil && s.Group.Name == "":
		errs = append(errs, field.Required(at.Child("group").Child("name"), ""))
	case s.ServiceAccount != nil:
		p := at.Child("serviceAccount")
		if n := s.ServiceAccount.Name; n == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		} else if n != all {
			errs = append(errs, check.Each(p.Child("name"), n, validation.ValidateServiceAccountName(n, false))...)
		}
		if n := s.ServiceAccount.Namespace; n == "" {
			errs = append(errs, field.Required(p.Child("namespace"), "must specify namespace for service account"))
		} else {
			errs = append(errs, check.Each(p.Child("namespace"), n, validation.ValidateNamespaceName(n, false))...)
		}
	}
	return errs
}

func validateResourceRule(at *field.Path, r *flowcontrolv1.ResourcePolicyRule) field.ErrorList {
	errs := validateVerbs(at.Child("verbs"), r.Verbs)
	errs = append(errs, validateWords(at.Child("apiGroups"), r.APIGroups, "values", "resource rules must supply at least one api group")...)
	errs = append(errs, validateWords(at.Child("resources"), r.Resources, "values", "resource rules must supply at least one resource")...)
	if len(r.Namespaces) == 0 && !r.ClusterScope {
		errs = append(errs, field.Required(at.Child("namespaces"), "resource rules that are not cluster scoped must supply at least one namespace"))
	}
	if slices.Contains(r.Namespaces, all) && len(r.Namespaces) > 1 {
		errs = append(errs, field.Invalid(at.Child("namespaces"), r.Namespaces, "may not specify '*' and other namespaces"))
	}
	for i, n := range r.Namespaces {
		if n != all {
			for _, msg := range validation.ValidateNamespaceName(n, false) {
				errs = append(errs, field.Invalid(at.Child("namespaces").Index(i), n, "each member of this list must be '*' or a DNS-1123 label; "+msg))
			}
		}
	}
	return errs
}

// validateWords wants at least one value, and no other beside "*"; what is the word
// for them.
func validateWords(at *field.Path, words []string, what, none string) field.ErrorList {
	switch {
	case len(words) == 0:
		return field.ErrorList{field.Required(at, none)}
	case len(words) > 1 && slices.Contains(words, all):
		return field.ErrorList{field.Invalid(at, words, "if '*' is present, must not specify other "+what)}
	}
	return nil
}

func validateVerbs(at *field.Path, list []string) field.ErrorList {
	errs := validateWords(at, list, "verbs", "verbs must contain at least one value")
	if !slices.Contains(list, all) && slices.ContainsFunc(list, func(v string) bool { return !slices.Contains(verbs, v) }) {
		errs = append(errs, field.NotSupported(at, list, verbs))
	}
	return errs
}

func validateLevel(p *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	switch p.Spec.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if p.Spec.Limited != nil {
			errs = append(errs, field.Forbidden(spec.Child("limited"), "must be nil if the type is not Limited"))
		}
		if e := p.Spec.Exempt; e != nil {
			errs = append(errs, shares(spec.Child("exempt"), e.NominalConcurrencyShares, 0)...)
			errs = append(errs, percent(spec.Child("exempt").Child("lendablePercent"), e.LendablePercent, 100)...)
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if p.Spec.Exempt != nil {
			errs = append(errs, field.Forbidden(spec.Child("exempt"), "must be nil if the type is Limited"))
		}
		if p.Spec.Limited == nil {
			errs = append(errs, field.Required(spec.Child("limited"), "must not be empty when type is Limited"))
		} else {
			errs = append(errs, validateLimited(spec.Child("limited"), p.Spec.Limited)...)
		}
	default:
		errs = append(errs, check.OneOf(spec.Child("type"), p.Spec.Type, flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited)...)
	}
	if p.Name == "exempt" && p.Spec.Type != flowcontrolv1.PriorityLevelEnablementExempt || p.Name != "exempt" && p.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt {
		errs = append(errs, field.Invalid(spec.Child("type"), p.Spec.Type, "must be 'Exempt' if and only if `name` is 'exempt'"))
	}
	return errs
}

func shares(at *field.Path, n *int32, least int32) field.ErrorList {
	if n != nil && *n < least {
		msg := "must be a non-negative integer"
		return field.ErrorList{field.Invalid(at.Child("nominalConcurrencyShares"), *n, msg)}
	}
	return nil
}

func percent(at *field.Path, n *int32, most int32) field.ErrorList {
	if n != nil && (*n < 0 || *n > most) {
		return field.ErrorList{field.Invalid(at, *n, fmt.Sprintf("must be between 0 and %d, inclusive", most))}
	}
	return nil
}

func validateLevelStatus(p, _ *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	var types []string
	for _, c := range p.Status.Conditions {
		types = append(types, string(c.Type))
	}
	return validateConditionTypes(types)
}

func validateSchemaStatus(f, _ *flowcontrolv1.FlowSchema) field.ErrorList {
	var types []string
	for _, c := range f.Status.Conditions {
		types = append(types, string(c.Type))
	}
	return validateConditionTypes(types)
}

func validateConditionTypes(types []string) (errs field.ErrorList) {
	for i, t := range types {
		at := field.NewPath("status", "conditions").Index(i).Child("type")
		if slices.Contains(types[:i], t) {
			errs = append(errs, field.Duplicate(at, t))
		}
		if t == "" {
			errs = append(errs, field.Required(at, ""))
		}
	}
	return errs
}

func validateLimited(at *field.Path, l *flowcontrolv1.LimitedPriorityLevelConfiguration) field.ErrorList {
	errs := shares(at, l.NominalConcurrencyShares, 0)
	errs = append(errs, percent(at.Child("lendablePercent"), l.LendablePercent, 100)...)
	if b := l.BorrowingLimitPercent; b != nil && *b < 0 {
		errs = append(errs, field.Invalid(at.Child("borrowingLimitPercent"), *b, "if specified, must be a non-negative integer"))
	}
	resp := at.Child("limitResponse")
	switch q := l.LimitResponse.Queuing; l.LimitResponse.Type {
	case flowcontrolv1.LimitResponseTypeReject:
		if q != nil {
			errs = append(errs, field.Forbidden(resp.Child("queuing"), "must be nil if limited.limitResponse.type is not Limited"))
		}
	case flowcontrolv1.LimitResponseTypeQueue:
		if q == nil {
			errs = append(errs, field.Required(resp.Child("queuing"), "must not be empty if limited.limitResponse.type is Limited"))
		} else {
			errs = append(errs, validateQueuing(resp.Child("queuing"), q)...)
		}
	default:
		errs = append(errs, check.OneOf(resp.Child("type"), l.LimitResponse.Type, flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject)...)
	}
	return errs
}

// maxEntropy bounds the bits of a flow's hash that dealing a hand takes.
const maxEntropy = 60

func validateQueuing(at *field.Path, q *flowcontrolv1.QueuingConfiguration) field.ErrorList {
	var errs field.ErrorList
	if q.QueueLengthLimit <= 0 {
		errs = append(errs, field.Invalid(at.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive"))
	}
	if q.Queues <= 0 {
		errs = append(errs, field.Invalid(at.Child("queues"), q.Queues, "must be positive"))
	} else if q.Queues > maxQueues {
		errs = append(errs, field.Invalid(at.Child("queues"), q.Queues, fmt.Sprintf("must not be greater than %d", maxQueues)))
	}
	switch {
	case q.HandSize <= 0:
		errs = append(errs, field.Invalid(at.Child("handSize"), q.HandSize, "must be positive"))
	case q.HandSize > q.Queues:
		errs = append(errs, field.Invalid(at.Child("handSize"), q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues)))
	default:
		bits := 0.0
		for i := range q.HandSize {
			bits += math.Log2(float64(q.Queues - i))
		}
		if need := int(math.Ceil(bits)); need > maxEntropy {
			errs = append(errs, field.Invalid(at.Child("handSize"), q.HandSize, fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than %d", q.Queues, q.HandSize, maxEntropy)))
		}
	}
	return errs
}
