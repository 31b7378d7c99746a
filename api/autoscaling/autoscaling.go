// Package autoscaling declares the horizontal pod autoscaler, which is stored as
// v2; v1 is a view on it.
package autoscaling

import (
	"fmt"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

const group = "autoscaling"

// HorizontalPodAutoscaler declares autoscaling/v2 HorizontalPodAutoscaler.
func HorizontalPodAutoscaler() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v2", Kind: "HorizontalPodAutoscaler", Resource: "horizontalpodautoscalers",
		ShortNames: []string{"hpa"}, Categories: []string{"all"}, Namespaced: true, HasStatus: true, NoGeneration: true,
		Default:  kind.Each(defaultAutoscaler),
		Validate: kind.Check(validateAutoscaler),
		ValidateStatus: kind.CheckChange(func(h, _ *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
			at := field.NewPath("status")
			return append(check.NonNegative(at.Child("currentReplicas"), h.Status.CurrentReplicas), check.NonNegative(at.Child("desiredReplicas"), h.Status.DesiredReplicas)...)
		}),
		Columns: columns.Named(
			columns.Text("Reference", "What is scaled."),
			columns.Text("Targets", "Measured and wanted values of the metrics."),
			columns.Text("MinPods", "Least number of pods."),
			columns.Text("MaxPods", "Greatest number of pods."),
			columns.Text("Replicas", "Present number of pods."),
			columns.Age(),
		),
		Row: kind.RowOf(func(h *autoscalingv2.HorizontalPodAutoscaler, now time.Time) []any {
			least := columns.Unset
			if h.Spec.MinReplicas != nil {
				least = fmt.Sprint(*h.Spec.MinReplicas)
			}
			ref := h.Spec.ScaleTargetRef
			return []any{h.Name, ref.Kind + "/" + ref.Name, targets(h), least, int64(h.Spec.MaxReplicas), int64(h.Status.CurrentReplicas), columns.Created(h, now)}
		}),
	}
}

func defaultAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	set(&h.Spec.MinReplicas, 1)
	if len(h.Spec.Metrics) == 0 {
		percent := int32(80)
		h.Spec.Metrics = []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{
				Name:   corev1.ResourceCPU,
				Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
			},
		}}
	}
	if b := h.Spec.Behavior; b != nil {
		set(&b.ScaleUp, autoscalingv2.HPAScalingRules{})
		set(&b.ScaleUp.StabilizationWindowSeconds, 0)
		set(&b.ScaleUp.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
		if b.ScaleUp.Policies == nil {
			b.ScaleUp.Policies = []autoscalingv2.HPAScalingPolicy{
				{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15},
				{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15},
			}
		}
		set(&b.ScaleDown, autoscalingv2.HPAScalingRules{})
		set(&b.ScaleDown.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
		if b.ScaleDown.Policies == nil {
			b.ScaleDown.Policies = []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}}
		}
	}
}

// targets prints "cpu: 12%/80%" for each metric, at most two of them.
func targets(h *autoscalingv2.HorizontalPodAutoscaler) string {
	var out []string
	for i, m := range h.Spec.Metrics {
		var now *autoscalingv2.MetricStatus
		if i < len(h.Status.CurrentMetrics) {
			now = &h.Status.CurrentMetrics[i]
		}
		out = append(out, metric(&m, now))
	}
	if len(out) == 0 {
		return columns.None
	}
	const shown = 2
	if len(out) > shown {
		return fmt.Sprintf("%s + %d more...", strings.Join(out[:shown], ", "), len(out)-shown)
	}
	return strings.Join(out, ", ")
}

func metric(m *autoscalingv2.MetricSpec, s *autoscalingv2.MetricStatus) string {
	var name string
	var want autoscalingv2.MetricTarget
	var have *autoscalingv2.MetricValueStatus
	switch {
	case m.Resource != nil:
		name, want = string(m.Resource.Name)+": ", m.Resource.Target
		if s != nil && s.Resource != nil {
			have = &s.Resource.Current
		}
	case m.ContainerResource != nil:
		name, want = string(m.ContainerResource.Name)+": ", m.ContainerResource.Target
		if s != nil && s.ContainerResource != nil {
			have = &s.ContainerResource.Current
		}
	case m.Pods != nil:
		want = m.Pods.Target
		if s != nil && s.Pods != nil {
			have = &s.Pods.Current
		}
	case m.Object != nil:
		want = m.Object.Target
		if s != nil && s.Object != nil {
			have = &s.Object.Current
		}
	case m.External != nil:
		want = m.External.Target
		if s != nil && s.External != nil {
			have = &s.External.Current
		}
	default:
		return "<unknown type>"
	}
	current := columns.Unknown
	switch {
	case want.AverageUtilization != nil:
		if have != nil && have.AverageUtilization != nil {
			current = fmt.Sprintf("%d%%", *have.AverageUtilization)
		}
		return fmt.Sprintf("%s%s/%d%%", name, current, *want.AverageUtilization)
	case want.AverageValue != nil:
		if have != nil && have.AverageValue != nil {
			current = have.AverageValue.String()
		}
		average := ""
		if m.Object != nil || m.External != nil {
			average = " (avg)"
		}
		return fmt.Sprintf("%s%s/%s%s", name, current, want.AverageValue.String(), average)
	case want.Value != nil:
		if have != nil && have.Value != nil {
			current = have.Value.String()
		}
		return fmt.Sprintf("%s%s/%s", name, current, want.Value.String())
	}
	return name + columns.Unknown + "/<auto>"
}

// set makes *p point to v unless it points somewhere.
func set[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}
