package autoscaling

import (
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	at, s := field.NewPath("spec"), &h.Spec
	var errs field.ErrorList
	const least = 1
	if s.MinReplicas != nil && *s.MinReplicas < least {
		errs = append(errs, field.Invalid(at.Child("minReplicas"), *s.MinReplicas, fmt.Sprintf("must be greater than or equal to %d", least)))
	}
	if s.MaxReplicas < 1 {
		errs = append(errs, field.Required(at.Child("maxReplicas"), "must be set and greater than 0"))
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		errs = append(errs, field.Invalid(at.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, check.Required(at.Child("scaleTargetRef", "kind"), s.ScaleTargetRef.Kind)...)
	errs = append(errs, check.Required(at.Child("scaleTargetRef", "name"), s.ScaleTargetRef.Name)...)
	errs = append(errs, checkTarget(at.Child("scaleTargetRef", "apiVersion"), s.ScaleTargetRef)...)
	for i := range s.Metrics {
		errs = append(errs, checkMetric(at.Child("metrics").Index(i), &s.Metrics[i])...)
	}
	if b := s.Behavior; b != nil {
		errs = append(errs, checkRules(at.Child("behavior", "scaleUp"), b.ScaleUp)...)
		errs = append(errs, checkRules(at.Child("behavior", "scaleDown"), b.ScaleDown)...)
	}
	return errs
}

// checkTarget wants the group of what is scaled: of the core group only replication
// controllers can be.
func checkTarget(at *field.Path, ref autoscalingv2.CrossVersionObjectReference) field.ErrorList {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	switch {
	case err != nil:
		return field.ErrorList{field.Invalid(at, ref.APIVersion, err.Error())}
	case gv.Group == "" && ref.Kind != "ReplicationController":
		return field.ErrorList{field.Invalid(at, ref.APIVersion, "apiVersion must specify API group")}
	}
	return nil
}

func checkMetric(at *field.Path, m *autoscalingv2.MetricSpec) field.ErrorList {
	errs := check.OneOf(at.Child("type"), m.Type, autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType,
		autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType)
	var target *autoscalingv2.MetricTarget
	var name string
	switch m.Type {
	case autoscalingv2.ResourceMetricSourceType:
		if name = "resource"; m.Resource != nil {
			target = &m.Resource.Target
			errs = append(errs, check.Required(at.Child(name, "name"), string(m.Resource.Name))...)
		}
	case autoscalingv2.ContainerResourceMetricSourceType:
		if name = "containerResource"; m.ContainerResource != nil {
			target = &m.ContainerResource.Target
			errs = append(errs, check.Required(at.Child(name, "container"), m.ContainerResource.Container)...)
		}
	case autoscalingv2.PodsMetricSourceType:
		if name = "pods"; m.Pods != nil {
			target = &m.Pods.Target
			errs = append(errs, check.Required(at.Child(name, "metric", "name"), m.Pods.Metric.Name)...)
		}
	case autoscalingv2.ObjectMetricSourceType:
		if name = "object"; m.Object != nil {
			target = &m.Object.Target
			errs = append(errs, check.Required(at.Child(name, "metric", "name"), m.Object.Metric.Name)...)
		}
	case autoscalingv2.ExternalMetricSourceType:
		if name = "external"; m.External != nil {
			target = &m.External.Target
			errs = append(errs, check.Required(at.Child(name, "metric", "name"), m.External.Metric.Name)...)
		}
	default:
		// Said once for the type and once for the source that it would name.
		return append(errs, errs...)
	}
	if target == nil {
		return append(errs, field.Required(at.Child(name), "must populate information for the given metric source"))
	}
	at = at.Child(name, "target")
	errs = append(errs, check.OneOf(at.Child("type"), target.Type, autoscalingv2.AverageValueMetricType, autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType)...)
	if u := target.AverageUtilization; u != nil && *u < 1 {
		errs = append(errs, field.Invalid(at.Child("averageUtilization"), *u, "must be greater than 0"))
	}
	if target.AverageUtilization == nil && target.AverageValue == nil && target.Value == nil {
		errs = append(errs, field.Required(at, "must set a target value"))
	}
	return errs
}

func checkRules(at *field.Path, r *autoscalingv2.HPAScalingRules) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	const maxSeconds = 3600
	if w := r.StabilizationWindowSeconds; w != nil {
		if *w < 0 {
			errs = append(errs, field.Invalid(at.Child("stabilizationWindowSeconds"), *w, "must be greater than or equal to zero"))
		}
		if *w > maxSeconds {
			errs = append(errs, field.Invalid(at.Child("stabilizationWindowSeconds"), *w, fmt.Sprintf("must be less than or equal to %v", maxSeconds)))
		}
	}
	if p := r.SelectPolicy; p != nil {
		errs = append(errs, check.OneOf(at.Child("selectPolicy"), *p, autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect)...)
	}
	if len(r.Policies) == 0 {
		errs = append(errs, field.Required(at.Child("policies"), "must specify at least one Policy"))
	}
	for i, p := range r.Policies {
		at := at.Child("policies").Index(i)
		errs = append(errs, check.OneOf(at.Child("type"), p.Type, autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy)...)
		if p.Value <= 0 {
			errs = append(errs, field.Invalid(at.Child("value"), p.Value, "must be greater than zero"))
		}
		if p.PeriodSeconds <= 0 {
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), p.PeriodSeconds, "must be greater than zero"))
		}
		if p.PeriodSeconds > 1800 {
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), p.PeriodSeconds, "must be less than or equal to 1800"))
		}
	}
	return errs
}
