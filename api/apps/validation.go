package apps

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/core"
)

// workload checks what all workloads have: a selector that finds their own pods,
// and a template. who is the word by which errors call the kind.
func workload(who string, s *metav1.LabelSelector, t *corev1.PodTemplateSpec) field.ErrorList {
	at := field.NewPath("spec")
	var errs field.ErrorList
	switch {
	case s == nil:
		errs = append(errs, field.Required(at.Child("selector"), ""))
	default:
		errs = append(errs, check.Selector(at.Child("selector"), s)...)
		if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
			errs = append(errs, field.Invalid(at.Child("selector"), s, "empty selector is invalid for "+who))
		}
	}
	if s == nil && (who == "deployment") {
		// No selector selects nothing, this template neither.
		errs = append(errs, field.Invalid(at.Child("template", "metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	} else if sel, err := metav1.LabelSelectorAsSelector(s); err != nil {
		switch who {
		case "deployment":
			errs = append(errs, field.Invalid(at.Child("selector"), s, "invalid label selector"))
		case "statefulset":
			errs = append(errs, field.Invalid(at.Child("selector"), s, ""))
		}
	} else if !sel.Empty() && s != nil && !sel.Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(at.Child("template", "metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, core.ValidatePodTemplate(t, at.Child("template"))...)
	return append(errs, core.OnlyRestartAlways(t, at.Child("template"), "ReplicaSet")...)
}

func validateDeployment(d *appsv1.Deployment) field.ErrorList {
	at := field.NewPath("spec")
	s := &d.Spec
	errs := check.NonNegativePointer(at.Child("replicas"), s.Replicas)
	errs = append(errs, workload("deployment", s.Selector, &s.Template)...)
	strategy := at.Child("strategy")
	errs = append(errs, check.OneOf(strategy, s.Strategy.Type, appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType)...)
	rolling := strategy.Child("rollingUpdate")
	switch r := s.Strategy.RollingUpdate; {
	case s.Strategy.Type == appsv1.RecreateDeploymentStrategyType && r != nil:
		errs = append(errs, field.Forbidden(rolling, "may not be specified when strategy `type` is '"+string(appsv1.RecreateDeploymentStrategyType)+"'"))
	case s.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType && r == nil:
		errs = append(errs, field.Required(rolling, "this should be defaulted and never be nil"))
	case r != nil:
		errs = append(errs, check.IntOrPercent(rolling.Child("maxUnavailable"), r.MaxUnavailable)...)
		errs = append(errs, check.IntOrPercent(rolling.Child("maxSurge"), r.MaxSurge)...)
		if check.IsZero(r.MaxUnavailable) && check.IsZero(r.MaxSurge) {
			errs = append(errs, field.Invalid(rolling.Child("maxUnavailable"), r.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
		}
		errs = append(errs, check.AtMostHundredPercent(rolling.Child("maxUnavailable"), r.MaxUnavailable)...)
	}
	errs = append(errs, check.NonNegative(at.Child("minReadySeconds"), s.MinReadySeconds)...)
	errs = append(errs, check.NonNegativePointer(at.Child("revisionHistoryLimit"), s.RevisionHistoryLimit)...)
	if p := s.ProgressDeadlineSeconds; p != nil {
		errs = append(errs, check.NonNegative(at.Child("progressDeadlineSeconds"), *p)...)
		if *p <= s.MinReadySeconds {
			errs = append(errs, field.Invalid(at.Child("progressDeadlineSeconds"), *p, "must be greater than minReadySeconds"))
		}
	}
	return errs
}

func validateDeploymentUpdate(d, old *appsv1.Deployment) field.ErrorList {
	return append(validateDeployment(d), check.Immutable(field.NewPath("spec", "selector"), d.Spec.Selector, old.Spec.Selector)...)
}

func validateDeploymentStatus(d, old *appsv1.Deployment) field.ErrorList {
	at, s := field.NewPath("status"), &d.Status
	errs := check.Counts(at, s.Replicas, check.Count{Name: "updatedReplicas", N: s.UpdatedReplicas},
		check.Count{Name: "readyReplicas", N: s.ReadyReplicas}, check.Count{Name: "availableReplicas", N: s.AvailableReplicas})
	errs = append(errs, check.NonNegative(at.Child("observedGeneration"), s.ObservedGeneration)...)
	errs = append(errs, check.NonNegative(at.Child("unavailableReplicas"), s.UnavailableReplicas)...)
	errs = append(errs, check.NonNegativePointer(at.Child("terminatingReplicas"), s.TerminatingReplicas)...)
	if s.AvailableReplicas > s.ReadyReplicas {
		errs = append(errs, field.Invalid(at.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than readyReplicas"))
	}
	return append(errs, checkCollisions(at.Child("collisionCount"), s.CollisionCount, old.Status.CollisionCount)...)
}

// checkCollisions: the count of names that were taken only rises.
func checkCollisions(at *field.Path, now, was *int32) field.ErrorList {
	if was != nil && (now == nil || *now < *was) {
		var shown int32
		if now != nil {
			shown = *now
		}
		return field.ErrorList{field.Invalid(at, shown, "cannot be decremented")}
	}
	return nil
}

func validateReplicaSet(r *appsv1.ReplicaSet) field.ErrorList {
	at := field.NewPath("spec")
	errs := check.NonNegativePointer(at.Child("replicas"), r.Spec.Replicas)
	errs = append(errs, check.NonNegative(at.Child("minReadySeconds"), r.Spec.MinReadySeconds)...)
	// Kubernetes itself says "deployment" here.
	return append(errs, workload("deployment", r.Spec.Selector, &r.Spec.Template)...)
}

func validateReplicaSetUpdate(r, old *appsv1.ReplicaSet) field.ErrorList {
	return append(validateReplicaSet(r), check.Immutable(field.NewPath("spec", "selector"), r.Spec.Selector, old.Spec.Selector)...)
}

func validateReplicaSetStatus(r, _ *appsv1.ReplicaSet) field.ErrorList {
	at, s := field.NewPath("status"), &r.Status
	errs := check.Counts(at, s.Replicas, check.Count{Name: "fullyLabeledReplicas", N: s.FullyLabeledReplicas},
		check.Count{Name: "readyReplicas", N: s.ReadyReplicas}, check.Count{Name: "availableReplicas", N: s.AvailableReplicas})
	errs = append(errs, check.NonNegative(at.Child("observedGeneration"), s.ObservedGeneration)...)
	errs = append(errs, check.NonNegativePointer(at.Child("terminatingReplicas"), s.TerminatingReplicas)...)
	if s.AvailableReplicas > s.ReadyReplicas {
		errs = append(errs, field.Invalid(at.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than readyReplicas"))
	}
	return errs
}

func validateDaemonSet(d *appsv1.DaemonSet) field.ErrorList {
	at, s := field.NewPath("spec"), &d.Spec
	errs := workload("daemonset", s.Selector, &s.Template)
	errs = append(errs, check.NonNegative(at.Child("minReadySeconds"), s.MinReadySeconds)...)
	errs = append(errs, check.NonNegativePointer(at.Child("revisionHistoryLimit"), s.RevisionHistoryLimit)...)
	strategy := at.Child("updateStrategy")
	errs = append(errs, check.OneOf(strategy, s.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType)...)
	if s.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		r, at := s.UpdateStrategy.RollingUpdate, strategy.Child("rollingUpdate")
		if r == nil {
			return append(errs, field.Required(at, ""))
		}
		errs = append(errs, check.IntOrPercent(at.Child("maxUnavailable"), r.MaxUnavailable)...)
		errs = append(errs, check.IntOrPercent(at.Child("maxSurge"), r.MaxSurge)...)
		errs = append(errs, check.AtMostHundredPercent(at.Child("maxUnavailable"), r.MaxUnavailable)...)
		errs = append(errs, check.AtMostHundredPercent(at.Child("maxSurge"), r.MaxSurge)...)
		switch unavailable, surge := !check.IsZero(r.MaxUnavailable), !check.IsZero(r.MaxSurge); {
		case unavailable && surge:
			errs = append(errs, field.Invalid(at.Child("maxSurge"), r.MaxSurge, "may not be set when maxUnavailable is non-zero"))
		case !unavailable && !surge:
			errs = append(errs, field.Required(at.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0"))
		}
	}
	return errs
}

func validateDaemonSetUpdate(d, old *appsv1.DaemonSet) field.ErrorList {
	return append(validateDaemonSet(d), check.Immutable(field.NewPath("spec", "selector"), d.Spec.Selector, old.Spec.Selector)...)
}

func validateDaemonSetStatus(d, old *appsv1.DaemonSet) field.ErrorList {
	at, s := field.NewPath("status"), &d.Status
	errs := check.NonNegative(at.Child("observedGeneration"), s.ObservedGeneration)
	for _, c := range []check.Count{
		{Name: "currentNumberScheduled", N: s.CurrentNumberScheduled}, {Name: "numberMisscheduled", N: s.NumberMisscheduled},
		{Name: "desiredNumberScheduled", N: s.DesiredNumberScheduled}, {Name: "numberReady", N: s.NumberReady},
		{Name: "updatedNumberScheduled", N: s.UpdatedNumberScheduled}, {Name: "numberAvailable", N: s.NumberAvailable},
		{Name: "numberUnavailable", N: s.NumberUnavailable},
	} {
		errs = append(errs, check.NonNegative(at.Child(c.Name), c.N)...)
	}
	return append(errs, checkCollisions(at.Child("collisionCount"), s.CollisionCount, old.Status.CollisionCount)...)
}

func validateStatefulSet(s *appsv1.StatefulSet) field.ErrorList {
	at, spec := field.NewPath("spec"), &s.Spec
	errs := check.NonNegativePointer(at.Child("replicas"), spec.Replicas)
	errs = append(errs, workload("statefulset", spec.Selector, withClaims(spec))...)
	if p := spec.PodManagementPolicy; p != appsv1.OrderedReadyPodManagement && p != appsv1.ParallelPodManagement {
		errs = append(errs, field.Invalid(at.Child("podManagementPolicy"), p, "must be 'OrderedReady' or 'Parallel'"))
	}
	errs = append(errs, check.OneOf(at.Child("updateStrategy", "type"), spec.UpdateStrategy.Type, appsv1.OnDeleteStatefulSetStrategyType, appsv1.RollingUpdateStatefulSetStrategyType)...)
	rolling := at.Child("updateStrategy", "rollingUpdate")
	if r := spec.UpdateStrategy.RollingUpdate; r != nil {
		if spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
			errs = append(errs, field.Invalid(rolling, r, "only allowed for updateStrategy '"+string(appsv1.RollingUpdateStatefulSetStrategyType)+"'"))
		}
		errs = append(errs, check.NonNegativePointer(rolling.Child("partition"), r.Partition)...)
		errs = append(errs, check.IntOrPercent(rolling.Child("maxUnavailable"), r.MaxUnavailable)...)
		if r.MaxUnavailable != nil && check.IsZero(r.MaxUnavailable) {
			errs = append(errs, field.Invalid(rolling.Child("maxUnavailable"), *r.MaxUnavailable, "cannot be 0"))
		}
	}
	errs = append(errs, check.NonNegative(at.Child("minReadySeconds"), spec.MinReadySeconds)...)
	if o := spec.Ordinals; o != nil {
		errs = append(errs, check.NonNegative(at.Child("ordinals", "start"), o.Start)...)
	}
	if p := spec.PersistentVolumeClaimRetentionPolicy; p != nil {
		at := at.Child("persistentVolumeClaimRetentionPolicy")
		errs = append(errs, check.OneOf(at.Child("whenDeleted"), p.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType)...)
		errs = append(errs, check.OneOf(at.Child("whenScaled"), p.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType)...)
	}
	return errs
}

// withClaims is the template with the volumes that the claim templates will make,
// so that mounts of them are found.
func withClaims(s *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	t := s.Template.DeepCopy()
	for _, c := range s.VolumeClaimTemplates {
		claim := &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name}
		found := false
		for i := range t.Spec.Volumes {
			if t.Spec.Volumes[i].Name == c.Name {
				t.Spec.Volumes[i].VolumeSource = corev1.VolumeSource{PersistentVolumeClaim: claim}
				found = true
			}
		}
		if !found {
			t.Spec.Volumes = append(t.Spec.Volumes, corev1.Volume{Name: c.Name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: claim}})
		}
	}
	return t
}

func validateStatefulSetStatus(set, old *appsv1.StatefulSet) field.ErrorList {
	at, s := field.NewPath("status"), &set.Status
	errs := check.Counts(at, s.Replicas, check.Count{Name: "readyReplicas", N: s.ReadyReplicas}, check.Count{Name: "currentReplicas", N: s.CurrentReplicas},
		check.Count{Name: "updatedReplicas", N: s.UpdatedReplicas}, check.Count{Name: "availableReplicas", N: s.AvailableReplicas})
	errs = append(errs, check.NonNegative(at.Child("observedGeneration"), s.ObservedGeneration)...)
	errs = append(errs, check.NonNegativePointer(at.Child("collisionCount"), s.CollisionCount)...)
	if s.AvailableReplicas > s.ReadyReplicas {
		errs = append(errs, field.Invalid(at.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than status.readyReplicas"))
	}
	return append(errs, checkCollisions(at.Child("collisionCount"), s.CollisionCount, old.Status.CollisionCount)...)
}

func validateStatefulSetUpdate(s, old *appsv1.StatefulSet) field.ErrorList {
	errs := validateStatefulSet(s)
	m := s.Spec.DeepCopy()
	o := &old.Spec
	m.Replicas, m.Ordinals, m.Template, m.UpdateStrategy = o.Replicas, o.Ordinals, o.Template, o.UpdateStrategy
	m.RevisionHistoryLimit, m.PersistentVolumeClaimRetentionPolicy, m.MinReadySeconds = o.RevisionHistoryLimit, o.PersistentVolumeClaimRetentionPolicy, o.MinReadySeconds
	if !check.Same(*m, *o) {
		errs = append(errs, field.Forbidden(field.NewPath("spec"), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"))
	}
	return errs
}

func validateControllerRevision(r *appsv1.ControllerRevision) field.ErrorList {
	errs := check.NonNegative(field.NewPath("revision"), r.Revision)
	if r.Data.Raw == nil && r.Data.Object == nil {
		errs = append(errs, field.Required(field.NewPath("data"), "data is mandatory"))
	}
	return errs
}

func validateControllerRevisionUpdate(r, old *appsv1.ControllerRevision) field.ErrorList {
	return append(validateControllerRevision(r), check.Immutable(field.NewPath("data"), r.Data, old.Data)...)
}
