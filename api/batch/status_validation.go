package batch

import (
	"fmt"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// validateJobStatus checks what a job's controller says of it: what has ended stays
// so, counters only rise, and what is said goes together.
func validateJobStatus(j, old *batchv1.Job) field.ErrorList {
	at, s, was := field.NewPath("status"), &j.Status, &old.Status
	errs := check.NonNegative(at.Child("active"), s.Active)
	errs = append(errs, check.NonNegative(at.Child("succeeded"), s.Succeeded)...)
	errs = append(errs, check.NonNegative(at.Child("failed"), s.Failed)...)
	errs = append(errs, check.NonNegativePointer(at.Child("ready"), s.Ready)...)
	errs = append(errs, check.NonNegativePointer(at.Child("terminating"), s.Terminating)...)
	if s.Ready != nil && *s.Ready > s.Active {
		errs = append(errs, field.Invalid(at.Child("ready"), *s.Ready, "cannot set more ready pods than active"))
	}
	if s.Failed < was.Failed {
		errs = append(errs, field.Invalid(at.Child("failed"), s.Failed, "cannot decrease the failed counter"))
	}
	if s.Succeeded < was.Succeeded {
		errs = append(errs, field.Invalid(at.Child("succeeded"), s.Succeeded, "cannot decrease the succeeded counter"))
	}
	errs = append(errs, checkUncounted(at.Child("uncountedTerminatedPods"), s.UncountedTerminatedPods)...)
	errs = append(errs, checkConditions(at.Child("conditions"), s, was)...)
	errs = append(errs, checkTimes(at, j, old)...)
	if holds(s, batchv1.JobComplete) || holds(s, batchv1.JobFailed) {
		errs = append(errs, checkFinished(at, s)...)
	}
	return append(errs, checkIndexes(at, j)...)
}

// holds tells whether a condition is true.
func holds(s *batchv1.JobStatus, t batchv1.JobConditionType) bool {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func checkUncounted(at *field.Path, u *batchv1.UncountedTerminatedPods) (errs field.ErrorList) {
	if u == nil {
		return nil
	}
	seen := map[types.UID]bool{}
	for _, l := range []struct {
		name string
		uids []types.UID
	}{{"succeeded", u.Succeeded}, {"failed", u.Failed}} {
		for i, uid := range l.uids {
			at := at.Child(l.name).Index(i)
			switch {
			case uid == "":
				errs = append(errs, field.Invalid(at, uid, "must not be empty"))
			case seen[uid]:
				errs = append(errs, field.Duplicate(at, uid))
			}
			seen[uid] = true
		}
	}
	return errs
}

// checkConditions: a job succeeds or fails, is first meant to, and then has for good.
func checkConditions(at *field.Path, s, was *batchv1.JobStatus) (errs field.ErrorList) {
	bad := func(format string, args ...any) {
		errs = append(errs, field.Invalid(at, field.OmitValueType{}, fmt.Sprintf(format, args...)))
	}
	for _, pair := range [][2]batchv1.JobConditionType{
		{batchv1.JobComplete, batchv1.JobFailed}, {batchv1.JobComplete, batchv1.JobFailureTarget},
		{batchv1.JobSuccessCriteriaMet, batchv1.JobFailed}, {batchv1.JobSuccessCriteriaMet, batchv1.JobFailureTarget},
	} {
		if holds(s, pair[0]) && holds(s, pair[1]) {
			bad("cannot set %s=True and %s=true conditions", pair[0], pair[1])
		}
	}
	for _, pair := range [][2]batchv1.JobConditionType{{batchv1.JobComplete, batchv1.JobSuccessCriteriaMet}, {batchv1.JobFailed, batchv1.JobFailureTarget}} {
		if holds(s, pair[0]) && !holds(s, pair[1]) && !holds(was, pair[0]) {
			bad("cannot set %s=True condition without the %s=true condition", pair[0], pair[1])
		}
	}
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		if holds(was, t) && !holds(s, t) {
			bad("cannot disable the terminal %s=True condition", t)
		}
	}
	if holds(was, batchv1.JobSuccessCriteriaMet) && !holds(s, batchv1.JobSuccessCriteriaMet) {
		bad("cannot disable the SuccessCriteriaMet=True condition")
	}
	return errs
}

func checkTimes(at *field.Path, j, old *batchv1.Job) (errs field.ErrorList) {
	s, was := &j.Status, &old.Status
	complete := holds(s, batchv1.JobComplete)
	done := at.Child("completionTime")
	switch {
	case was.CompletionTime != nil && s.CompletionTime != nil && !s.CompletionTime.Equal(was.CompletionTime):
		errs = append(errs, field.Invalid(done, s.CompletionTime, "field is immutable"))
	case complete && s.CompletionTime == nil:
		errs = append(errs, field.Required(done, "completionTime is required for Complete jobs"))
	case !complete && s.CompletionTime != nil:
		errs = append(errs, field.Invalid(done, s.CompletionTime, "cannot set completionTime when there is no Complete=True condition"))
	case s.CompletionTime != nil && s.StartTime != nil && s.CompletionTime.Before(s.StartTime):
		errs = append(errs, field.Invalid(done, s.CompletionTime, "must be equal to or after `startTime`"))
	}
	running := j.Spec.Suspend == nil || !*j.Spec.Suspend
	if running && was.StartTime != nil && !was.StartTime.Equal(s.StartTime) {
		errs = append(errs, field.Invalid(at.Child("startTime"), s.StartTime, "field is immutable for unsuspended job once set"))
	}
	return errs
}

// checkFinished: of a job that has ended nothing runs and nothing is left to count.
func checkFinished(at *field.Path, s *batchv1.JobStatus) (errs field.ErrorList) {
	if s.StartTime == nil {
		errs = append(errs, field.Required(at.Child("startTime"), "startTime is required for finished job"))
	}
	if s.Active > 0 {
		errs = append(errs, field.Invalid(at.Child("active"), s.Active, "active>0 is invalid for finished job"))
	}
	if s.Terminating != nil && *s.Terminating > 0 {
		errs = append(errs, field.Invalid(at.Child("terminating"), *s.Terminating, "terminating>0 is invalid for finished job"))
	}
	if u := s.UncountedTerminatedPods; u != nil && len(u.Succeeded)+len(u.Failed) > 0 {
		shown := struct{ Succeeded, Failed []types.UID }{u.Succeeded, u.Failed} // as Kubernetes writes it
		errs = append(errs, field.Invalid(at.Child("uncountedTerminatedPods"), shown, "must be empty for finished job"))
	}
	return errs
}

// checkIndexes checks which indexes are said to have ended.
func checkIndexes(at *field.Path, j *batchv1.Job) (errs field.ErrorList) {
	s := &j.Status
	indexed := j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion
	var completions int
	if j.Spec.Completions != nil {
		completions = int(*j.Spec.Completions)
	}
	var completed, failed [][2]int
	at1, at2 := at.Child("completedIndexes"), at.Child("failedIndexes")
	if s.CompletedIndexes != "" {
		if !indexed {
			errs = append(errs, field.Invalid(at1, s.CompletedIndexes, "cannot set non-empty completedIndexes when non-indexed completion mode"))
		} else {
			var err error
			if completed, err = parseIndexes(s.CompletedIndexes, completions); err != nil {
				errs = append(errs, field.Invalid(at1, s.CompletedIndexes, fmt.Sprintf("error parsing completedIndexes: %v", err)))
			}
		}
	}
	if s.FailedIndexes != nil {
		if j.Spec.BackoffLimitPerIndex == nil {
			errs = append(errs, field.Invalid(at2, *s.FailedIndexes, "cannot set non-null failedIndexes when backoffLimitPerIndex is null"))
		} else {
			var err error
			if failed, err = parseIndexes(*s.FailedIndexes, completions); err != nil {
				errs = append(errs, field.Invalid(at2, *s.FailedIndexes, fmt.Sprintf("error parsing failedIndexes: %v", err)))
			}
		}
	}
	if i, ok := overlap(completed, failed); ok {
		errs = append(errs, field.Invalid(at2, *s.FailedIndexes, fmt.Sprintf("failedIndexes and completedIndexes overlap at index: %d", i)))
	}
	return errs
}

// parseIndexes reads rising numbers below limit, and ranges of them: "1,3-5,7".
func parseIndexes(text string, limit int) (out [][2]int, err error) {
	if text == "" {
		return nil, nil
	}
	previous, first := 0, true
	next := func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		switch {
		case err != nil:
			return 0, fmt.Errorf("cannot convert string to integer for index: %q", s)
		case n >= limit:
			return 0, fmt.Errorf("too large index: %q", s)
		case !first && n <= previous:
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", previous, n)
		}
		previous, first = n, false
		return n, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(item, "-")
		a, err := next(from)
		if err != nil {
			return nil, err
		}
		b := a
		if ranged {
			if b, err = next(to); err != nil {
				return nil, err
			}
		}
		out = append(out, [2]int{a, b})
	}
	return out, nil
}

// overlap finds the first number that is in ranges of both, which rise.
func overlap(a, b [][2]int) (int, bool) {
	for len(a) > 0 && len(b) > 0 {
		from, to := max(a[0][0], b[0][0]), min(a[0][1], b[0][1])
		switch {
		case from <= to:
			return from, true
		case a[0][1] < b[0][1]:
			a = a[1:]
		default:
			b = b[1:]
		}
	}
	return 0, false
}
