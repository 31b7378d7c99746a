package batch

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// Greatest sizes of a job's parts.
const (
	maxIndexedParallelism = 100000
	maxPolicyRules        = 20
	maxExitCodes          = 255
)

// checkPolicies checks what decides when a job has failed or succeeded.
func checkPolicies(at *field.Path, s *batchv1.JobSpec) field.ErrorList {
	var errs field.ErrorList
	indexed := s.CompletionMode != nil && *s.CompletionMode == batchv1.IndexedCompletion
	if indexed && s.Parallelism != nil && *s.Parallelism > maxIndexedParallelism {
		errs = append(errs, field.Invalid(at.Child("parallelism"), *s.Parallelism, fmt.Sprintf("must be less than or equal to %d when completion mode is Indexed", maxIndexedParallelism)))
	}
	if n := s.MaxFailedIndexes; n != nil {
		errs = append(errs, check.NonNegative(at.Child("maxFailedIndexes"), *n)...)
		if s.Completions != nil && *n > *s.Completions {
			errs = append(errs, field.Invalid(at.Child("maxFailedIndexes"), *n, "must be less than or equal to completions"))
		}
	}
	if m := s.ManagedBy; m != nil {
		errs = append(errs, validation.IsDomainPrefixedPath(at.Child("managedBy"), *m)...)
	}
	if p := s.PodFailurePolicy; p != nil {
		errs = append(errs, checkFailurePolicy(at.Child("podFailurePolicy", "rules"), p, s)...)
	}
	if p := s.SuccessPolicy; p != nil {
		if !indexed {
			return append(errs, field.Invalid(at.Child("successPolicy"), p, "requires indexed completion mode"))
		}
		errs = append(errs, checkSuccessPolicy(at.Child("successPolicy", "rules"), p, s)...)
	}
	return errs
}

func checkFailurePolicy(at *field.Path, p *batchv1.PodFailurePolicy, s *batchv1.JobSpec) field.ErrorList {
	if len(p.Rules) > maxPolicyRules {
		return field.ErrorList{field.TooMany(at, len(p.Rules), maxPolicyRules)}
	}
	var errs field.ErrorList
	for i := range p.Rules {
		errs = append(errs, checkFailureRule(at.Index(i), &p.Rules[i], s)...)
	}
	return errs
}

func checkFailureRule(at *field.Path, r *batchv1.PodFailurePolicyRule, s *batchv1.JobSpec) field.ErrorList {
	var errs field.ErrorList
	switch r.Action {
	case "":
		errs = append(errs, field.Required(at.Child("action"), fmt.Sprintf("valid values: %q", []batchv1.PodFailurePolicyAction{
			batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore})))
	case batchv1.PodFailurePolicyActionFailIndex:
		if s.BackoffLimitPerIndex == nil {
			errs = append(errs, field.Invalid(at.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set"))
		}
	default:
		errs = append(errs, check.Exactly(at.Child("action"), r.Action, batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
			batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore)...)
	}
	if r.OnExitCodes != nil {
		errs = append(errs, checkExitCodes(at.Child("onExitCodes"), r.OnExitCodes, &s.Template.Spec)...)
	}
	for i, c := range r.OnPodConditions {
		at := at.Child("onPodConditions").Index(i)
		errs = append(errs, check.QualifiedName(at.Child("type"), string(c.Type))...)
		errs = append(errs, check.OneOf(at.Child("status"), c.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)...)
	}
	switch codes, conditions := r.OnExitCodes != nil, len(r.OnPodConditions) > 0; {
	case codes && conditions:
		errs = append(errs, field.Invalid(at, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
	case !codes && !conditions:
		errs = append(errs, field.Invalid(at, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required"))
	}
	return errs
}

func checkExitCodes(at *field.Path, r *batchv1.PodFailurePolicyOnExitCodesRequirement, pod *corev1.PodSpec) field.ErrorList {
	errs := check.OneOf(at.Child("operator"), r.Operator, batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn)
	if name := r.ContainerName; name != nil {
		same := func(c corev1.Container) bool { return c.Name == *name }
		if !slices.ContainsFunc(pod.Containers, same) && !slices.ContainsFunc(pod.InitContainers, same) {
			errs = append(errs, field.Invalid(at.Child("containerName"), *name, "must be one of the container or initContainer names in the pod template"))
		}
	}
	values := at.Child("values")
	switch {
	case len(r.Values) == 0:
		return append(errs, field.Invalid(values, r.Values, "at least one value is required"))
	case len(r.Values) > maxExitCodes:
		return append(errs, field.TooMany(values, len(r.Values), maxExitCodes))
	}
	seen := map[int32]bool{}
	for i, v := range r.Values {
		if r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && v == 0 {
			errs = append(errs, field.Invalid(values.Index(i), v, "must not be 0 for the In operator"))
		}
		if seen[v] {
			errs = append(errs, field.Duplicate(values.Index(i), v))
		}
		seen[v] = true
	}
	if !slices.IsSorted(r.Values) {
		errs = append(errs, field.Invalid(values, r.Values, "must be ordered"))
	}
	return errs
}

func checkSuccessPolicy(at *field.Path, p *batchv1.SuccessPolicy, s *batchv1.JobSpec) field.ErrorList {
	switch {
	case len(p.Rules) == 0:
		return field.ErrorList{field.Required(at, "at least one rules must be specified when the successPolicy is specified")}
	case len(p.Rules) > maxPolicyRules:
		return field.ErrorList{field.TooMany(at, len(p.Rules), maxPolicyRules)}
	case s.Completions == nil:
		return nil // said elsewhere
	}
	var errs field.ErrorList
	for i, r := range p.Rules {
		at := at.Index(i)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			errs = append(errs, field.Required(at, "at least one of succeededCount or succeededIndexes must be specified"))
		}
		named := int32(-1)
		if r.SucceededIndexes != nil {
			n, err := countIndexes(*r.SucceededIndexes, *s.Completions)
			if err != nil {
				errs = append(errs, field.Invalid(at.Child("succeededIndexes"), *r.SucceededIndexes, fmt.Sprintf("error parsing succeededIndexes: %v", err)))
			} else {
				named = n
			}
		}
		if r.SucceededCount == nil {
			continue
		}
		count := at.Child("succeededCount")
		errs = append(errs, check.NonNegative(count, *r.SucceededCount)...)
		if *r.SucceededCount > *s.Completions {
			errs = append(errs, field.Invalid(count, *r.SucceededCount, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", *s.Completions)))
		}
		if named >= 0 && *r.SucceededCount > named {
			errs = append(errs, field.Invalid(count, *r.SucceededCount, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", named)))
		}
	}
	return errs
}

// countIndexes reads "1,3-5" and tells how many indexes below completions it names.
func countIndexes(text string, completions int32) (int32, error) {
	var n int32
	last := -1
	for item := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(item, "-")
		a, err := index(from, completions)
		if err != nil {
			return 0, err
		}
		b := a
		if ranged {
			if b, err = index(to, completions); err != nil {
				return 0, err
			}
		}
		if a <= last || b < a {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", max(last, a), min(a, b))
		}
		n, last = n+int32(b-a+1), b
	}
	return n, nil
}

func index(text string, completions int32) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("cannot convert string to integer for index: %q", text)
	}
	if n >= int(completions) {
		return 0, fmt.Errorf("too large index: %q", text)
	}
	return n, nil
}
