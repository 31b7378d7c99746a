// Package batch declares jobs and cron jobs.
package batch

import (
	"fmt"
	"maps"
	"math"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/core"
	"knarr.dev/knarr/api/kind"
)

const group = "batch"

// Labels of a job's pods beside batchv1's own, kept for older clients.
const (
	legacyControllerUID = "controller-uid"
	legacyJobName       = "job-name"
)

// Job declares batch/v1 Job.
func Job() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "Job", Resource: "jobs", Categories: []string{"all"}, Namespaced: true, HasStatus: true,
		Default:        kind.Each(defaultJob),
		PrepareCreate:  kind.Each(prepareJob),
		Validate:       kind.Check(validateJob),
		ValidateUpdate: kind.CheckChange(validateJobUpdate),
		ValidateStatus: kind.CheckChange(validateJobStatus),
		Fields: kind.FieldsOf(func(j *batchv1.Job) fields.Set {
			return fields.Set{"status.successful": fmt.Sprint(j.Status.Succeeded)}
		}),
		Columns: append(columns.Named(
			columns.Text("Status", "How far the job is."),
			columns.Text("Completions", "Succeeded pods of the wanted ones."),
			columns.Text("Duration", "How long it took, or takes."),
			columns.Age(),
		), columns.Workload()...),
		Row: kind.RowOf(jobRow),
	}
}

func defaultJob(j *batchv1.Job) {
	core.DefaultPodTemplate(&j.Spec.Template)
	s := &j.Spec
	if s.Completions == nil && s.Parallelism == nil {
		set(&s.Completions, 1)
	}
	set(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		set(&s.BackoffLimit, math.MaxInt32)
	}
	set(&s.BackoffLimit, 6)
	if t := s.Template.Labels; t != nil && len(j.Labels) == 0 {
		j.Labels = maps.Clone(t)
	}
	set(&s.CompletionMode, batchv1.NonIndexedCompletion)
	set(&s.Suspend, false)
	if s.PodFailurePolicy != nil {
		set(&s.PodReplacementPolicy, batchv1.Failed)
		for i := range s.PodFailurePolicy.Rules {
			on := s.PodFailurePolicy.Rules[i].OnPodConditions
			for k := range on {
				if on[k].Status == "" {
					on[k].Status = corev1.ConditionTrue
				}
			}
		}
	}
	set(&s.PodReplacementPolicy, batchv1.TerminatingOrFailed)
	set(&s.ManualSelector, false)
}

// prepareJob makes the selector by which the job owns its pods, unless the
// client takes that upon itself with manualSelector.
func prepareJob(j *batchv1.Job) {
	j.Status = batchv1.JobStatus{}
	if m := j.Spec.ManualSelector; m != nil && *m {
		return
	}
	t := &j.Spec.Template
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	// A value that is there already is left for validation to refuse.
	for key, value := range map[string]string{
		legacyJobName: j.Name, legacyControllerUID: string(j.UID),
		batchv1.JobNameLabel: j.Name, batchv1.ControllerUidLabel: string(j.UID),
	} {
		if _, ok := t.Labels[key]; !ok {
			t.Labels[key] = value
		}
	}
	if j.Spec.Selector == nil {
		j.Spec.Selector = &metav1.LabelSelector{}
	}
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	if _, ok := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !ok {
		j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
	}
}

func jobRow(j *batchv1.Job, now time.Time) []any {
	var completions string
	switch {
	case j.Spec.Completions != nil:
		completions = fmt.Sprintf("%d/%d", j.Status.Succeeded, *j.Spec.Completions)
	case columns.Deref(j.Spec.Parallelism, 0) > 1:
		completions = fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, *j.Spec.Parallelism)
	default:
		completions = fmt.Sprintf("%d/1", j.Status.Succeeded)
	}
	took := ""
	if start := j.Status.StartTime; start != nil {
		end := now
		if j.Status.CompletionTime != nil {
			end = j.Status.CompletionTime.Time
		}
		took = duration.HumanDuration(end.Sub(start.Time))
	}
	names, images := columns.Images(j.Spec.Template.Spec.Containers)
	return []any{j.Name, jobStatus(j), completions, took, columns.Created(j, now), names, images, columns.Selector(j.Spec.Selector)}
}

func jobStatus(j *batchv1.Job) string {
	holds := map[batchv1.JobConditionType]bool{}
	for _, c := range j.Status.Conditions {
		holds[c.Type] = c.Status == corev1.ConditionTrue
	}
	switch {
	case holds[batchv1.JobComplete]:
		return "Complete"
	case holds[batchv1.JobFailed]:
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case holds[batchv1.JobSuspended]:
		return "Suspended"
	case holds[batchv1.JobFailureTarget]:
		return "FailureTarget"
	case holds[batchv1.JobSuccessCriteriaMet]:
		return "SuccessCriteriaMet"
	}
	return "Running"
}

// CronJob declares batch/v1 CronJob.
func CronJob() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "CronJob", Resource: "cronjobs", ShortNames: []string{"cj"}, Categories: []string{"all"}, Namespaced: true, HasStatus: true,
		Default:        kind.Each(defaultCronJob),
		Validate:       kind.Check(validateCronJob),
		ValidateUpdate: kind.CheckChange(validateCronJobUpdate),
		Columns: append(columns.Named(
			columns.Text("Schedule", "When jobs are made, in Cron format."),
			columns.Text("Timezone", "Time zone of the schedule."),
			columns.Flag("Suspend", "Whether no jobs are made."),
			columns.Count("Active", "Jobs that run."),
			columns.Text("Last Schedule", "Time since a job was last made."),
			columns.Age(),
		), columns.Workload()...),
		Row: kind.RowOf(func(c *batchv1.CronJob, now time.Time) []any {
			last := columns.None
			if t := c.Status.LastScheduleTime; t != nil {
				last = columns.Since(*t, now)
			}
			names, images := columns.Images(c.Spec.JobTemplate.Spec.Template.Spec.Containers)
			return []any{c.Name, c.Spec.Schedule, columns.Deref(c.Spec.TimeZone, columns.None), titleBool(columns.Deref(c.Spec.Suspend, false)),
				int64(len(c.Status.Active)), last, columns.Created(c, now), names, images, columns.Selector(c.Spec.JobTemplate.Spec.Selector)}
		}),
	}
}

func titleBool(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

func defaultCronJob(c *batchv1.CronJob) {
	core.DefaultPodTemplate(&c.Spec.JobTemplate.Spec.Template)
	if c.Spec.ConcurrencyPolicy == "" {
		c.Spec.ConcurrencyPolicy = batchv1.AllowConcurrent
	}
	set(&c.Spec.Suspend, false)
	set(&c.Spec.SuccessfulJobsHistoryLimit, 3)
	set(&c.Spec.FailedJobsHistoryLimit, 1)
}

// set makes *p point to v unless it points somewhere.
func set[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}
