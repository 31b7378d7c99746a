package core

import (
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// ReplicationController declares v1 ReplicationController.
func ReplicationController() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "ReplicationController", Resource: "replicationcontrollers", ShortNames: []string{"rc"}, Categories: []string{"all"},
		Namespaced: true, Storage: "controllers", HasStatus: true,
		Default:        kind.Each(defaultReplicationController),
		Validate:       kind.Check(validateReplicationController),
		ValidateUpdate: kind.CheckChange(func(rc, _ *corev1.ReplicationController) errorList { return validateReplicationController(rc) }),
		ValidateStatus: kind.CheckChange(validateReplicationControllerStatus),
		Scale: kind.ScaleOf(
			func(r *corev1.ReplicationController) **int32 { return &r.Spec.Replicas },
			func(r *corev1.ReplicationController) int32 { return r.Status.Replicas },
			func(r *corev1.ReplicationController) string { return labels.SelectorFromSet(r.Spec.Selector).String() }),
		Fields: kind.FieldsOf(func(r *corev1.ReplicationController) fields.Set {
			return fields.Set{"status.replicas": fmt.Sprint(r.Status.Replicas)}
		}),
		Columns: append(columns.Named(
			columns.Count("Desired", "Wanted pods."),
			columns.Count("Current", "Pods that exist."),
			columns.Count("Ready", "Pods that are ready."),
			columns.Age(),
		), columns.Workload()...),
		Row: kind.RowOf(func(r *corev1.ReplicationController, now time.Time) []any {
			var names, images string
			if r.Spec.Template != nil {
				names, images = columns.Images(r.Spec.Template.Spec.Containers)
			}
			return []any{r.Name, int64(columns.Deref(r.Spec.Replicas, 0)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas),
				columns.Created(r, now), names, images, columns.Labels(r.Spec.Selector)}
		}),
	}
}

// defaultReplicationController takes selector and labels from the template.
func defaultReplicationController(r *corev1.ReplicationController) {
	orNew(&r.Spec.Replicas, 1)
	t := r.Spec.Template
	if t == nil {
		return
	}
	DefaultPodTemplate(t)
	if t.Labels != nil {
		if len(r.Spec.Selector) == 0 {
			r.Spec.Selector = maps.Clone(t.Labels)
		}
		if len(r.Labels) == 0 {
			r.Labels = maps.Clone(t.Labels)
		}
	}
}
