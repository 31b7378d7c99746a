// Package apps declares the workload kinds of the group apps.
package apps

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

const group = "apps"

// Deployment declares apps/v1 Deployment.
func Deployment() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "Deployment", Resource: "deployments", ShortNames: []string{"deploy"},
		Categories: []string{"all"}, Namespaced: true, HasStatus: true,
		Default: kind.Each(defaultDeployment),
		PrepareStatus: func(obj, old kind.Object) {
			kind.KeepAllButStatus(obj, old)
			obj.SetLabels(old.GetLabels())
		},
		Validate:       kind.Check(validateDeployment),
		ValidateUpdate: kind.CheckChange(validateDeploymentUpdate),
		ValidateStatus: kind.CheckChange(validateDeploymentStatus),
		Scale: kind.ScaleOf(
			func(d *appsv1.Deployment) **int32 { return &d.Spec.Replicas },
			func(d *appsv1.Deployment) int32 { return d.Status.Replicas },
			func(d *appsv1.Deployment) string { return selector(d.Spec.Selector) }),
		Columns: append(columns.Named(
			columns.Text("Ready", "Ready pods of the wanted ones."),
			columns.Text("Up-to-date", "Pods of the present template."),
			columns.Text("Available", "Pods that have been ready for minReadySeconds."),
			columns.Age(),
		), columns.Workload()...),
		Row: kind.RowOf(func(d *appsv1.Deployment, now time.Time) []any {
			names, images := columns.Images(d.Spec.Template.Spec.Containers)
			return []any{d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, columns.Deref(d.Spec.Replicas, 0)),
				int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), columns.Created(d, now), names, images, columns.Selector(d.Spec.Selector)}
		}),
	}
}

// ReplicaSet declares apps/v1 ReplicaSet.
func ReplicaSet() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ReplicaSet", Resource: "replicasets", ShortNames: []string{"rs"},
		Categories: []string{"all"}, Namespaced: true, HasStatus: true,
		Default:        kind.Each(defaultReplicaSet),
		Validate:       kind.Check(validateReplicaSet),
		ValidateUpdate: kind.CheckChange(validateReplicaSetUpdate),
		ValidateStatus: kind.CheckChange(validateReplicaSetStatus),
		Scale: kind.ScaleOf(
			func(r *appsv1.ReplicaSet) **int32 { return &r.Spec.Replicas },
			func(r *appsv1.ReplicaSet) int32 { return r.Status.Replicas },
			func(r *appsv1.ReplicaSet) string { return selector(r.Spec.Selector) }),
		Fields: kind.FieldsOf(func(r *appsv1.ReplicaSet) fields.Set {
			return fields.Set{"status.replicas": fmt.Sprint(r.Status.Replicas)}
		}),
		Columns: append(columns.Named(
			columns.Count("Desired", "Wanted pods."),
			columns.Count("Current", "Pods that exist."),
			columns.Count("Ready", "Pods that are ready."),
			columns.Age(),
		), columns.Workload()...),
		Row: kind.RowOf(func(r *appsv1.ReplicaSet, now time.Time) []any {
			names, images := columns.Images(r.Spec.Template.Spec.Containers)
			return []any{r.Name, int64(columns.Deref(r.Spec.Replicas, 0)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas),
				columns.Created(r, now), names, images, columns.Selector(r.Spec.Selector)}
		}),
	}
}

// DaemonSet declares apps/v1 DaemonSet.
func DaemonSet() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "DaemonSet", Resource: "daemonsets", ShortNames: []string{"ds"},
		Categories: []string{"all"}, Namespaced: true, HasStatus: true,
		Default:        kind.Each(defaultDaemonSet),
		PrepareCreate:  kind.Each(prepareDaemonSet),
		PrepareUpdate:  kind.Pair(prepareDaemonSetUpdate),
		PrepareStatus:  kind.Pair(prepareDaemonSetStatus),
		Validate:       kind.Check(validateDaemonSet),
		ValidateUpdate: kind.CheckChange(validateDaemonSetUpdate),
		ValidateStatus: kind.CheckChange(validateDaemonSetStatus),
		Columns: append(columns.Named(
			columns.Count("Desired", "Nodes that should run the pod."),
			columns.Count("Current", "Nodes that run the pod."),
			columns.Count("Ready", "Nodes whose pod is ready."),
			columns.Count("Up-to-date", "Nodes whose pod is of the present template."),
			columns.Count("Available", "Nodes whose pod is available."),
			columns.Text("Node Selector", "Labels of the nodes that are wanted."),
			columns.Age(),
		), columns.Workload()...),
		Row: kind.RowOf(func(d *appsv1.DaemonSet, now time.Time) []any {
			names, images := columns.Images(d.Spec.Template.Spec.Containers)
			s := d.Status
			return []any{d.Name, int64(s.DesiredNumberScheduled), int64(s.CurrentNumberScheduled), int64(s.NumberReady),
				int64(s.UpdatedNumberScheduled), int64(s.NumberAvailable), columns.Labels(d.Spec.Template.Spec.NodeSelector),
				columns.Created(d, now), names, images, columns.Selector(d.Spec.Selector)}
		}),
	}
}

// StatefulSet declares apps/v1 StatefulSet.
func StatefulSet() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "StatefulSet", Resource: "statefulsets", ShortNames: []string{"sts"},
		ValidName:  validation.NameIsDNSLabel,
		Categories: []string{"all"}, Namespaced: true, HasStatus: true,
		Default:        kind.Each(defaultStatefulSet),
		Validate:       kind.Check(validateStatefulSet),
		ValidateUpdate: kind.CheckChange(validateStatefulSetUpdate),
		ValidateStatus: kind.CheckChange(validateStatefulSetStatus),
		Scale: kind.ScaleOf(
			func(s *appsv1.StatefulSet) **int32 { return &s.Spec.Replicas },
			func(s *appsv1.StatefulSet) int32 { return s.Status.Replicas },
			func(s *appsv1.StatefulSet) string { return selector(s.Spec.Selector) }),
		Columns: append(columns.Named(
			columns.Text("Ready", "Ready pods of the wanted ones."),
			columns.Age(),
		), columns.Workload()[:2]...),
		Row: kind.RowOf(func(s *appsv1.StatefulSet, now time.Time) []any {
			names, images := columns.Images(s.Spec.Template.Spec.Containers)
			return []any{s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, columns.Deref(s.Spec.Replicas, 0)), columns.Created(s, now), names, images}
		}),
	}
}

// ControllerRevision declares apps/v1 ControllerRevision.
func ControllerRevision() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ControllerRevision", Resource: "controllerrevisions", Namespaced: true, NoGeneration: true,
		Validate:       kind.Check(validateControllerRevision),
		ValidateUpdate: kind.CheckChange(validateControllerRevisionUpdate),
		Columns: columns.Named(
			columns.Text("Controller", "The object that the revision belongs to."),
			columns.Text("Revision", "The revision's number."),
			columns.Age(),
		),
		Row: kind.RowOf(func(r *appsv1.ControllerRevision, now time.Time) []any {
			owner := columns.None
			if c := metav1.GetControllerOf(r); c != nil {
				owner = strings.ToLower(c.Kind) + "/" + c.Name
				if g, _, ok := strings.Cut(c.APIVersion, "/"); ok {
					owner = strings.ToLower(c.Kind) + "." + g + "/" + c.Name
				}
			}
			return []any{r.Name, owner, r.Revision, columns.Created(r, now)}
		}),
	}
}

func selector(s *metav1.LabelSelector) string {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return sel.String()
}
