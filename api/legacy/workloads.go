package legacy

import (
	"maps"
	"math"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	appsv1beta1 "k8s.io/api/apps/v1beta1"
	corev1 "k8s.io/api/core/v1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/api/kind"
)

// Old groups and versions.
const (
	extensions = "extensions"
	apps       = "apps"
	v1beta1    = "v1beta1"
	v1beta2    = "v1beta2"
)

// templateGeneration is where apps/v1 keeps a field that it no longer has.
const templateGeneration = appsv1.DeprecatedTemplateGeneration

// followTemplate is what the first versions did for those who wrote neither a
// selector nor labels: both follow the template's labels.
func followTemplate(meta *metav1.ObjectMeta, selector **metav1.LabelSelector, t *corev1.PodTemplateSpec) {
	if len(t.Labels) == 0 {
		return
	}
	if *selector == nil {
		*selector = &metav1.LabelSelector{MatchLabels: maps.Clone(t.Labels)}
	}
	if len(meta.Labels) == 0 {
		meta.Labels = maps.Clone(t.Labels)
	}
}

// oneAtATime is how the first rolling updates went unless told otherwise.
func oneAtATime(s *appsv1.DeploymentStrategy) {
	if s.Type == "" {
		s.Type = appsv1.RollingUpdateDeploymentStrategyType
	}
	if s.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return
	}
	orNew(&s.RollingUpdate, appsv1.RollingUpdateDeployment{})
	orNew(&s.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	orNew(&s.RollingUpdate.MaxSurge, intstr.FromInt32(1))
}

func extensionsDeployment(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: extensions, Version: v1beta1, Others: rollback(extensions)}, hub, func(old *extensionsv1beta1.Deployment, d *appsv1.Deployment) {
		followTemplate(&d.ObjectMeta, &d.Spec.Selector, &d.Spec.Template)
		oneAtATime(&d.Spec.Strategy)
		orNew(&d.Spec.ProgressDeadlineSeconds, math.MaxInt32) // no deadline
		orNew(&d.Spec.RevisionHistoryLimit, math.MaxInt32)    // all are kept
		oldPod(&d.Spec.Template)
		if to := old.Spec.RollbackTo; to != nil {
			rollbackTo(d, to.Revision)
		}
	}, func(_ *appsv1.Deployment, old *extensionsv1beta1.Deployment) {
		if to, ok := wantsRollback(&old.ObjectMeta); ok {
			old.Spec.RollbackTo = &extensionsv1beta1.RollbackConfig{Revision: to}
		}
	})
}

func firstDeployment(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: apps, Version: v1beta1, Others: rollback(apps)}, hub, func(old *appsv1beta1.Deployment, d *appsv1.Deployment) {
		followTemplate(&d.ObjectMeta, &d.Spec.Selector, &d.Spec.Template)
		orNew(&d.Spec.RevisionHistoryLimit, 2)
		oldPod(&d.Spec.Template)
		if to := old.Spec.RollbackTo; to != nil {
			rollbackTo(d, to.Revision)
		}
	}, func(_ *appsv1.Deployment, old *appsv1beta1.Deployment) {
		if to, ok := wantsRollback(&old.ObjectMeta); ok {
			old.Spec.RollbackTo = &appsv1beta1.RollbackConfig{Revision: to}
		}
	})
}

// rollback is the subresource by which the first deployments went back.
func rollback(group string) []kind.Subresource {
	return []kind.Subresource{{Name: "rollback", GVK: schema.GroupVersionKind{Group: group, Version: v1beta1, Kind: "DeploymentRollback"}, Verbs: []string{"create"}}}
}

// rollbackTo keeps the wish for a revision, which apps/v1 has no field for, where the
// deployment controller finds it.
func rollbackTo(d *appsv1.Deployment, revision int64) {
	metav1.SetMetaDataAnnotation(&d.ObjectMeta, appsv1.DeprecatedRollbackTo, strconv.FormatInt(revision, 10))
}

// wantsRollback takes what rollbackTo has kept.
func wantsRollback(meta *metav1.ObjectMeta) (revision int64, ok bool) {
	revision, err := strconv.ParseInt(meta.Annotations[appsv1.DeprecatedRollbackTo], 10, 64)
	if err != nil {
		return 0, false
	}
	delete(meta.Annotations, appsv1.DeprecatedRollbackTo)
	return revision, true
}

func extensionsReplicaSet(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: extensions, Version: v1beta1}, hub, func(_ *extensionsv1beta1.ReplicaSet, r *appsv1.ReplicaSet) {
		followTemplate(&r.ObjectMeta, &r.Spec.Selector, &r.Spec.Template)
		oldPod(&r.Spec.Template)
	}, nil)
}

func extensionsDaemonSet(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: extensions, Version: v1beta1}, hub, func(old *extensionsv1beta1.DaemonSet, d *appsv1.DaemonSet) {
		followTemplate(&d.ObjectMeta, &d.Spec.Selector, &d.Spec.Template)
		if d.Spec.UpdateStrategy.Type == "" {
			d.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType
		}
		if n := old.Spec.TemplateGeneration; n != 0 {
			metav1.SetMetaDataAnnotation(&d.ObjectMeta, templateGeneration, strconv.FormatInt(n, 10))
		}
		oldPod(&d.Spec.Template)
	}, func(d *appsv1.DaemonSet, old *extensionsv1beta1.DaemonSet) {
		if n, err := strconv.ParseInt(d.Annotations[templateGeneration], 10, 64); err == nil {
			old.Spec.TemplateGeneration = n
			delete(old.Annotations, templateGeneration)
		}
	})
}

// firstStatefulSet fills what stateful sets had before apps/v1beta2, and pet sets.
func firstStatefulSet(s *appsv1.StatefulSet) {
	followTemplate(&s.ObjectMeta, &s.Spec.Selector, &s.Spec.Template)
	if s.Spec.UpdateStrategy.Type == "" {
		s.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType
	}
	oldPod(&s.Spec.Template)
}

func statefulSet(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: apps, Version: v1beta1}, hub, func(_ *appsv1beta1.StatefulSet, s *appsv1.StatefulSet) { firstStatefulSet(s) }, nil)
}

// A selector that nothing matches: what an empty one meant in policy/v1beta1, where
// in policy/v1 it means everything.
const matchesNothing = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match"

func disruptionBudget(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: "policy", Version: v1beta1}, hub, func(_ *policyv1beta1.PodDisruptionBudget, b *policyv1.PodDisruptionBudget) {
		if s := b.Spec.Selector; s != nil && len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
			s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: matchesNothing, Operator: metav1.LabelSelectorOpExists}}
		}
	}, func(_ *policyv1.PodDisruptionBudget, old *policyv1beta1.PodDisruptionBudget) {
		s := old.Spec.Selector
		switch {
		case s == nil || len(s.MatchLabels) > 0:
		case len(s.MatchExpressions) == 0:
			// Everything: said in the way that v1beta1 can.
			s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: matchesNothing, Operator: metav1.LabelSelectorOpDoesNotExist}}
		case len(s.MatchExpressions) == 1 && s.MatchExpressions[0].Key == matchesNothing && s.MatchExpressions[0].Operator == metav1.LabelSelectorOpExists:
			s.MatchExpressions = nil
		}
	})
}
