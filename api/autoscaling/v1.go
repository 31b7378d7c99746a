package autoscaling

import (
	"encoding/json"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/api/kind"
)

// Annotations in which v1 carries what it has no fields for, so that a client of
// v1 which reads and writes loses nothing. Their values are v2's own JSON.
const (
	metricsAnnotation    = "autoscaling.alpha.kubernetes.io/metrics"
	behaviorAnnotation   = "autoscaling.alpha.kubernetes.io/behavior"
	currentAnnotation    = "autoscaling.alpha.kubernetes.io/current-metrics"
	conditionsAnnotation = "autoscaling.alpha.kubernetes.io/conditions"
)

// HorizontalPodAutoscalerV1 declares autoscaling/v1 HorizontalPodAutoscaler, a
// view on v2: its target CPU utilization is v2's resource metric cpu.
func HorizontalPodAutoscalerV1() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "HorizontalPodAutoscaler", Resource: "horizontalpodautoscalers",
		ShortNames: []string{"hpa"}, Categories: []string{"all"}, Namespaced: true, HasStatus: true, NoGeneration: true,
		Hub:   HorizontalPodAutoscaler().GVK(),
		ToHub: toV2, FromHub: fromV2,
	}
}

func toV2(o kind.Object) (kind.Object, error) {
	in, ok := o.(*autoscalingv1.HorizontalPodAutoscaler)
	if !ok {
		return nil, fmt.Errorf("autoscaling/v1 HorizontalPodAutoscaler: got %T", o)
	}
	in = in.DeepCopy()
	out := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: in.ObjectMeta,
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
			MinReplicas:    in.Spec.MinReplicas, MaxReplicas: in.Spec.MaxReplicas,
		},
		Status: autoscalingv2.HorizontalPodAutoscalerStatus{
			ObservedGeneration: in.Status.ObservedGeneration, LastScaleTime: in.Status.LastScaleTime,
			CurrentReplicas: in.Status.CurrentReplicas, DesiredReplicas: in.Status.DesiredReplicas,
		},
	}
	var metrics []autoscalingv2.MetricSpec
	var current []autoscalingv2.MetricStatus
	for _, a := range []struct {
		key  string
		into any
	}{{metricsAnnotation, &metrics}, {behaviorAnnotation, &out.Spec.Behavior}, {currentAnnotation, &current}, {conditionsAnnotation, &out.Status.Conditions}} {
		text, ok := out.Annotations[a.key]
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(text), a.into); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", a.key, err)
		}
		delete(out.Annotations, a.key)
	}
	if p := in.Spec.TargetCPUUtilizationPercentage; p != nil {
		metrics = append([]autoscalingv2.MetricSpec{cpuMetric(*p)}, metrics...)
	}
	if p := in.Status.CurrentCPUUtilizationPercentage; p != nil {
		current = append([]autoscalingv2.MetricStatus{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricStatus{
			Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: p}}}}, current...)
	}
	out.Spec.Metrics, out.Status.CurrentMetrics = metrics, current
	return out, nil
}

func cpuMetric(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name:   corev1.ResourceCPU,
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}

func fromV2(o kind.Object) (kind.Object, error) {
	in, ok := o.(*autoscalingv2.HorizontalPodAutoscaler)
	if !ok {
		return nil, fmt.Errorf("autoscaling/v2 HorizontalPodAutoscaler: got %T", o)
	}
	in = in.DeepCopy()
	out := &autoscalingv1.HorizontalPodAutoscaler{
		TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v1", Kind: "HorizontalPodAutoscaler"},
		ObjectMeta: in.ObjectMeta,
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
			MinReplicas:    in.Spec.MinReplicas, MaxReplicas: in.Spec.MaxReplicas,
		},
		Status: autoscalingv1.HorizontalPodAutoscalerStatus{
			ObservedGeneration: in.Status.ObservedGeneration, LastScaleTime: in.Status.LastScaleTime,
			CurrentReplicas: in.Status.CurrentReplicas, DesiredReplicas: in.Status.DesiredReplicas,
		},
	}
	var metrics []autoscalingv2.MetricSpec
	for _, m := range in.Spec.Metrics {
		r := m.Resource
		if out.Spec.TargetCPUUtilizationPercentage == nil && r != nil && r.Name == corev1.ResourceCPU && r.Target.AverageUtilization != nil {
			out.Spec.TargetCPUUtilizationPercentage = r.Target.AverageUtilization
			continue
		}
		metrics = append(metrics, m)
	}
	var current []autoscalingv2.MetricStatus
	for _, m := range in.Status.CurrentMetrics {
		r := m.Resource
		if out.Status.CurrentCPUUtilizationPercentage == nil && r != nil && r.Name == corev1.ResourceCPU && r.Current.AverageUtilization != nil {
			out.Status.CurrentCPUUtilizationPercentage = r.Current.AverageUtilization
			continue
		}
		current = append(current, m)
	}
	for _, a := range []struct {
		key   string
		set   bool
		value any
	}{{metricsAnnotation, len(metrics) > 0, metrics}, {behaviorAnnotation, in.Spec.Behavior != nil, in.Spec.Behavior},
		{currentAnnotation, len(current) > 0, current}, {conditionsAnnotation, len(in.Status.Conditions) > 0, in.Status.Conditions}} {
		if !a.set {
			continue
		}
		text, err := json.Marshal(a.value)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", a.key, err)
		}
		metav1.SetMetaDataAnnotation(&out.ObjectMeta, a.key, string(text))
	}
	return out, nil
}
