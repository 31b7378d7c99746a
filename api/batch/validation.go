package batch

import (
	"fmt"
	"math"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/core"
)

// A cron job's name leaves room for the 11 characters that are added to its jobs'.
const maxCronJobName = 52

func validateJob(j *batchv1.Job) field.ErrorList {
	at := field.NewPath("spec")
	errs := checkJobSpec(at, &j.Spec)
	if j.Spec.Selector == nil {
		return append(errs, field.Required(at.Child("selector"), ""))
	}
	errs = append(errs, check.Selector(at.Child("selector"), j.Spec.Selector)...)
	if sel, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !sel.Matches(labels.Set(j.Spec.Template.Labels)) {
		errs = append(errs, field.Invalid(at.Child("template", "metadata", "labels"), j.Spec.Template.Labels, "`selector` does not match template `labels`"))
	}
	if j.Spec.ManualSelector == nil || !*j.Spec.ManualSelector {
		errs = append(errs, checkGenerated(at, j)...)
	}
	return errs
}

// checkGenerated checks the selector and the labels that a job makes for itself.
func checkGenerated(at *field.Path, j *batchv1.Job) (errs field.ErrorList) {
	labels, uid := at.Child("template", "metadata", "labels"), string(j.UID)
	for _, l := range []struct{ key, want string }{{legacyControllerUID, uid}, {legacyJobName, j.Name}} {
		switch got, ok := j.Spec.Template.Labels[l.key]; {
		case !ok:
			errs = append(errs, field.Required(labels.Key(l.key), fmt.Sprintf("must be '%s'", l.want)))
		case got != l.want:
			errs = append(errs, field.Invalid(labels.Key(l.key), j.Spec.Template.Labels, fmt.Sprintf("must be '%s'", l.want)))
		}
	}
	for _, key := range []string{batchv1.ControllerUidLabel, legacyControllerUID} {
		if check.Same(j.Spec.Selector, &metav1.LabelSelector{MatchLabels: map[string]string{key: uid}}) {
			return errs
		}
	}
	return append(errs, field.Invalid(at.Child("selector"), j.Spec.Selector, "`selector` not auto-generated"))
}

func checkJobSpec(at *field.Path, s *batchv1.JobSpec) field.ErrorList {
	errs := check.NonNegativePointer(at.Child("parallelism"), s.Parallelism)
	errs = append(errs, check.NonNegativePointer(at.Child("completions"), s.Completions)...)
	errs = append(errs, check.NonNegativePointer(at.Child("activeDeadlineSeconds"), s.ActiveDeadlineSeconds)...)
	errs = append(errs, check.NonNegativePointer(at.Child("backoffLimit"), s.BackoffLimit)...)
	errs = append(errs, check.NonNegativePointer(at.Child("ttlSecondsAfterFinished"), s.TTLSecondsAfterFinished)...)
	errs = append(errs, check.NonNegativePointer(at.Child("backoffLimitPerIndex"), s.BackoffLimitPerIndex)...)
	indexed := s.CompletionMode != nil && *s.CompletionMode == batchv1.IndexedCompletion
	if s.CompletionMode != nil {
		errs = append(errs, check.Exactly(at.Child("completionMode"), *s.CompletionMode, batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)...)
	}
	if indexed && s.Completions == nil {
		errs = append(errs, field.Required(at.Child("completions"), "when completion mode is Indexed"))
	}
	if !indexed && s.BackoffLimitPerIndex != nil {
		errs = append(errs, field.Invalid(at.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, "requires indexed completion mode"))
	}
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Required(at.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
	}
	errs = append(errs, checkPolicies(at, s)...)
	if p := s.PodReplacementPolicy; p != nil && s.PodFailurePolicy != nil {
		errs = append(errs, check.Exactly(at.Child("podReplacementPolicy"), *p, batchv1.Failed)...)
	} else if p != nil {
		errs = append(errs, check.OneOf(at.Child("podReplacementPolicy"), *p, batchv1.Failed, batchv1.TerminatingOrFailed)...)
	}
	errs = append(errs, core.ValidatePodTemplate(&s.Template, at.Child("template"))...)
	policy := at.Child("template", "spec", "restartPolicy")
	if p := s.Template.Spec.RestartPolicy; p == "" || p == corev1.RestartPolicyAlways {
		errs = append(errs, field.Required(policy, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)))
	} else {
		errs = append(errs, check.OneOfOrEmpty(policy, p, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
		if s.PodFailurePolicy != nil && p != corev1.RestartPolicyNever {
			errs = append(errs, field.Invalid(policy, p, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever)))
		}
	}
	return errs
}

func validateJobUpdate(j, old *batchv1.Job) field.ErrorList {
	at := field.NewPath("spec")
	errs := validateJob(j)
	// An indexed job can grow and shrink as long as parallelism follows.
	indexed := old.Spec.CompletionMode != nil && *old.Spec.CompletionMode == batchv1.IndexedCompletion
	elastic := indexed && j.Spec.Completions != nil && j.Spec.Parallelism != nil && *j.Spec.Completions == *j.Spec.Parallelism
	switch {
	case elastic:
	case indexed && !check.Same(j.Spec.Completions, old.Spec.Completions):
		errs = append(errs, field.Invalid(at.Child("completions"), j.Spec.Completions, "can only be modified in tandem with spec.parallelism"))
	default:
		errs = append(errs, check.Immutable(at.Child("completions"), j.Spec.Completions, old.Spec.Completions)...)
	}
	errs = append(errs, check.Immutable(at.Child("selector"), j.Spec.Selector, old.Spec.Selector)...)
	errs = append(errs, checkTemplateChange(at.Child("template"), j, old)...)
	errs = append(errs, check.Immutable(at.Child("completionMode"), j.Spec.CompletionMode, old.Spec.CompletionMode)...)
	errs = append(errs, check.Immutable(at.Child("podFailurePolicy"), j.Spec.PodFailurePolicy, old.Spec.PodFailurePolicy)...)
	errs = append(errs, check.Immutable(at.Child("backoffLimitPerIndex"), j.Spec.BackoffLimitPerIndex, old.Spec.BackoffLimitPerIndex)...)
	errs = append(errs, check.Immutable(at.Child("managedBy"), j.Spec.ManagedBy, old.Spec.ManagedBy)...)
	return append(errs, check.Immutable(at.Child("successPolicy"), j.Spec.SuccessPolicy, old.Spec.SuccessPolicy)...)
}

// checkTemplateChange lets a queue direct where the pods of a job go before it first
// runs, and what they may use while it is suspended.
func checkTemplateChange(at *field.Path, j, old *batchv1.Job) field.ErrorList {
	was, now := old.Spec.Template.DeepCopy(), &j.Spec.Template
	suspended := old.Spec.Suspend != nil && *old.Spec.Suspend
	if !suspended || old.Status.StartTime != nil || old.Status.Active > 0 {
		return check.Immutable(at, *now, *was)
	}
	was.Spec.NodeSelector, was.Spec.Tolerations, was.Spec.Affinity = now.Spec.NodeSelector, now.Spec.Tolerations, now.Spec.Affinity
	was.Spec.SchedulingGates = now.Spec.SchedulingGates
	for _, l := range []struct{ was, now []corev1.Container }{{was.Spec.Containers, now.Spec.Containers}, {was.Spec.InitContainers, now.Spec.InitContainers}} {
		for i := range min(len(l.was), len(l.now)) {
			l.was[i].Resources = l.now[i].Resources
		}
	}
	return check.Immutable(at.Child("spec"), now.Spec, was.Spec)
}

func validateCronJob(c *batchv1.CronJob) field.ErrorList {
	errs := validateCronJobUpdate(c, c)
	if len(c.Name) > maxCronJobName {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), c.Name, fmt.Sprintf("must be no more than %d characters", maxCronJobName)))
	}
	return errs
}

func validateCronJobUpdate(c, old *batchv1.CronJob) field.ErrorList {
	at, s := field.NewPath("spec"), &c.Spec
	var errs field.ErrorList
	switch {
	case s.Schedule == "":
		errs = append(errs, field.Required(at.Child("schedule"), ""))
	case strings.Contains(s.Schedule, "TZ") && (c == old || !strings.Contains(old.Spec.Schedule, "TZ")):
		errs = append(errs, field.Invalid(at.Child("schedule"), s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
	default:
		if err := checkSchedule(s.Schedule); err != nil {
			errs = append(errs, field.Invalid(at.Child("schedule"), s.Schedule, err.Error()))
		}
	}
	if z := s.TimeZone; z != nil {
		if *z == "" {
			errs = append(errs, field.Invalid(at.Child("timeZone"), z, "timeZone must be nil or non-empty string"))
		} else if _, err := time.LoadLocation(*z); err != nil || strings.EqualFold(*z, "Local") {
			errs = append(errs, field.Invalid(at.Child("timeZone"), z, fmt.Sprintf("unknown time zone %s", *z)))
		}
	}
	errs = append(errs, check.OneOf(at.Child("concurrencyPolicy"), s.ConcurrencyPolicy, batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)...)
	errs = append(errs, check.NonNegativePointer(at.Child("startingDeadlineSeconds"), s.StartingDeadlineSeconds)...)
	errs = append(errs, check.NonNegativePointer(at.Child("successfulJobsHistoryLimit"), s.SuccessfulJobsHistoryLimit)...)
	errs = append(errs, check.NonNegativePointer(at.Child("failedJobsHistoryLimit"), s.FailedJobsHistoryLimit)...)
	job := at.Child("jobTemplate", "spec")
	errs = append(errs, checkJobSpec(job, &s.JobTemplate.Spec)...)
	if s.JobTemplate.Spec.ManualSelector != nil && *s.JobTemplate.Spec.ManualSelector {
		errs = append(errs, field.NotSupported(job.Child("manualSelector"), true, []string{"nil", "false"}))
	}
	return errs
}

// scheduleFields are the fields of a Cron line with the greatest and least value.
var scheduleFields = []struct {
	name        string
	least, most int
	words       string // names for values, in order
}{
	{"minute", 0, 59, ""}, {"hour", 0, 23, ""}, {"day of month", 1, 31, ""},
	{"month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"},
	{"day of week", 0, 7, "sun mon tue wed thu fri sat"},
}

// checkSchedule checks a Cron line of five fields, or one of its short forms.
func checkSchedule(s string) error {
	if strings.HasPrefix(s, "TZ=") || strings.HasPrefix(s, "CRON_TZ=") {
		_, s, _ = strings.Cut(s, " ")
	}
	if every, ok := strings.CutPrefix(s, "@every "); ok {
		if _, err := time.ParseDuration(every); err != nil {
			return fmt.Errorf("failed to parse duration %s: %s", s, err)
		}
		return nil
	}
	switch s {
	case "@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly":
		return nil
	}
	parts := strings.Fields(s)
	if len(parts) != len(scheduleFields) {
		return fmt.Errorf("expected exactly 5 fields, found %d: [%s]", len(parts), strings.Join(parts, " "))
	}
	for i, f := range scheduleFields {
		for item := range strings.SplitSeq(parts[i], ",") {
			if !validRange(item, f.least, f.most, strings.Fields(f.words)) {
				return fmt.Errorf("%s: %q must be within %d and %d", f.name, item, f.least, f.most)
			}
		}
	}
	return nil
}

// validRange checks "*", "5", "1-5" and each of them with "/step".
func validRange(item string, least, most int, words []string) bool {
	item, step, stepped := strings.Cut(item, "/")
	if n, ok := number(step, nil); stepped && (!ok || n == 0) {
		return false
	}
	if item == "*" || item == "?" {
		return true
	}
	from, to, ranged := strings.Cut(item, "-")
	a, ok := number(from, words)
	if !ok || a < least || a > most {
		return false
	}
	if !ranged {
		return true
	}
	b, ok := number(to, words)
	return ok && b >= a && b <= most
}

func number(s string, words []string) (int, bool) {
	for i, w := range words {
		if strings.EqualFold(s, w) {
			if len(words) == 12 {
				i++ // months begin at one
			}
			return i, true
		}
	}
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' || n > math.MaxInt16 {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, s != ""
}
