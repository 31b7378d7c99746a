package legacy

import (
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
)

// AutoscalerV2beta2 is autoscaling/v2beta2 HorizontalPodAutoscaler, which has v2's
// shape; k8s.io/api has it no more.
type AutoscalerV2beta2 struct {
	autoscalingv2.HorizontalPodAutoscaler
}

// DeepCopyObject implements runtime.Object.
func (a *AutoscalerV2beta2) DeepCopyObject() runtime.Object {
	return &AutoscalerV2beta2{*a.DeepCopy()}
}

// AutoscalerV2beta2List is a list of them.
type AutoscalerV2beta2List struct {
	autoscalingv2.HorizontalPodAutoscalerList
}

// DeepCopyObject implements runtime.Object.
func (l *AutoscalerV2beta2List) DeepCopyObject() runtime.Object {
	return &AutoscalerV2beta2List{*l.DeepCopy()}
}

// gone is the kind of a version that k8s.io/api does not have any more.
func gone(version, name, deprecated, removed string, hub *kind.Kind, make func() kind.Object, list func() runtime.Object) kind.Kind {
	gvk := schema.GroupVersionKind{Group: hub.Group, Version: version, Kind: name}
	return kind.Kind{Group: hub.Group, Version: version, New: make, NewList: list, Deprecated: warning(gvk, hub.GVK(), deprecated, removed)}
}

func autoscalerV2beta2(hub *kind.Kind) *kind.Kind {
	return view[AutoscalerV2beta2, autoscalingv2.HorizontalPodAutoscaler](gone("v2beta2", hub.Kind, "v1.23", "v1.26", hub,
		func() kind.Object { return &AutoscalerV2beta2{} }, func() runtime.Object { return &AutoscalerV2beta2List{} }), hub, nil, nil)
}

// AutoscalerV2beta1 is autoscaling/v2beta1 HorizontalPodAutoscaler: a metric's
// target stands in a field of its own for each way to give it.
type AutoscalerV2beta1 struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              AutoscalerSpec   `json:"spec,omitempty"`
	Status            AutoscalerStatus `json:"status,omitempty"`
}

// AutoscalerV2beta1List is a list of them.
type AutoscalerV2beta1List struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AutoscalerV2beta1 `json:"items"`
}

// AutoscalerSpec is what a v2beta1 autoscaler wants.
type AutoscalerSpec struct {
	ScaleTargetRef autoscalingv2.CrossVersionObjectReference `json:"scaleTargetRef"`
	MinReplicas    *int32                                    `json:"minReplicas,omitempty"`
	MaxReplicas    int32                                     `json:"maxReplicas"`
	Metrics        []Metric                                  `json:"metrics,omitempty"`
}

// AutoscalerStatus is what a v2beta1 autoscaler has found and done.
type AutoscalerStatus struct {
	ObservedGeneration *int64                                           `json:"observedGeneration,omitempty"`
	LastScaleTime      *metav1.Time                                     `json:"lastScaleTime,omitempty"`
	CurrentReplicas    int32                                            `json:"currentReplicas"`
	DesiredReplicas    int32                                            `json:"desiredReplicas"`
	CurrentMetrics     []Metric                                         `json:"currentMetrics"`
	Conditions         []autoscalingv2.HorizontalPodAutoscalerCondition `json:"conditions"`
}

// Metric is a metric of v2beta1: wanted in a spec, measured in a status.
type Metric struct {
	Type              autoscalingv2.MetricSourceType `json:"type"`
	Object            *MetricSource                  `json:"object,omitempty"`
	Pods              *MetricSource                  `json:"pods,omitempty"`
	Resource          *MetricSource                  `json:"resource,omitempty"`
	ContainerResource *MetricSource                  `json:"containerResource,omitempty"`
	External          *MetricSource                  `json:"external,omitempty"`
}

// MetricSource has the fields of all kinds of metrics, of which each has some.
type MetricSource struct {
	Name                      corev1.ResourceName                        `json:"name,omitempty"`
	Container                 string                                     `json:"container,omitempty"`
	Target                    *autoscalingv2.CrossVersionObjectReference `json:"target,omitempty"`
	MetricName                string                                     `json:"metricName,omitempty"`
	Selector                  *metav1.LabelSelector                      `json:"selector,omitempty"`
	MetricSelector            *metav1.LabelSelector                      `json:"metricSelector,omitempty"`
	TargetAverageUtilization  *int32                                     `json:"targetAverageUtilization,omitempty"`
	TargetAverageValue        *resource.Quantity                         `json:"targetAverageValue,omitempty"`
	TargetValue               *resource.Quantity                         `json:"targetValue,omitempty"`
	AverageValue              *resource.Quantity                         `json:"averageValue,omitempty"`
	CurrentAverageUtilization *int32                                     `json:"currentAverageUtilization,omitempty"`
	CurrentAverageValue       *resource.Quantity                         `json:"currentAverageValue,omitempty"`
	CurrentValue              *resource.Quantity                         `json:"currentValue,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (a *AutoscalerV2beta1) DeepCopyObject() runtime.Object {
	out := &AutoscalerV2beta1{}
	if err := convert(a, out); err != nil {
		panic(fmt.Sprintf("legacy: %v", err)) // a type of plain data always encodes
	}
	return out
}

// DeepCopyObject implements runtime.Object.
func (l *AutoscalerV2beta1List) DeepCopyObject() runtime.Object {
	out := &AutoscalerV2beta1List{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopyObject().(*AutoscalerV2beta1))
	}
	return out
}

// keptByAutoscaler are the fields that v2beta1 does not have.
const keptByAutoscaler = "autoscaling.alpha.kubernetes.io/behavior"

func autoscalerV2beta1(hub *kind.Kind) *kind.Kind {
	k := gone("v2beta1", hub.Kind, "v1.22", "v1.25", hub, func() kind.Object { return &AutoscalerV2beta1{} }, func() runtime.Object { return &AutoscalerV2beta1List{} })
	return view(k, hub, func(old *AutoscalerV2beta1, h *autoscalingv2.HorizontalPodAutoscaler) {
		restore(&h.ObjectMeta, keptByAutoscaler, func() any { return &h.Spec.Behavior })
		h.Spec.Metrics, h.Status.CurrentMetrics = nil, nil
		for i := range old.Spec.Metrics {
			h.Spec.Metrics = append(h.Spec.Metrics, metricUp(&old.Spec.Metrics[i]))
		}
		for i := range old.Status.CurrentMetrics {
			h.Status.CurrentMetrics = append(h.Status.CurrentMetrics, measuredUp(&old.Status.CurrentMetrics[i]))
		}
	}, func(h *autoscalingv2.HorizontalPodAutoscaler, old *AutoscalerV2beta1) {
		if h.Spec.Behavior != nil {
			save(&old.ObjectMeta, keptByAutoscaler, h.Spec.Behavior)
		}
		old.Spec.Metrics, old.Status.CurrentMetrics = nil, nil
		for i := range h.Spec.Metrics {
			old.Spec.Metrics = append(old.Spec.Metrics, metricDown(&h.Spec.Metrics[i]))
		}
		for i := range h.Status.CurrentMetrics {
			old.Status.CurrentMetrics = append(old.Status.CurrentMetrics, measuredDown(&h.Status.CurrentMetrics[i]))
		}
	})
}
