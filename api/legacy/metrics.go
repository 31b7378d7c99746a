package legacy

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// target says in v2's way what v2beta1 says by which field is set.
func target(utilization *int32, average, value *resource.Quantity) autoscalingv2.MetricTarget {
	t := autoscalingv2.MetricTarget{AverageUtilization: utilization, AverageValue: average, Value: value}
	switch {
	case utilization != nil:
		t.Type = autoscalingv2.UtilizationMetricType
	case average != nil:
		t.Type = autoscalingv2.AverageValueMetricType
	default:
		t.Type = autoscalingv2.ValueMetricType
	}
	return t
}

// positive drops the zero that stands in a required field which means nothing.
func positive(q *resource.Quantity) *resource.Quantity {
	if q == nil || q.IsZero() {
		return nil
	}
	return q
}

func orZero(q *resource.Quantity) *resource.Quantity {
	if q == nil {
		return &resource.Quantity{}
	}
	return q
}

func identifier(s *MetricSource) autoscalingv2.MetricIdentifier {
	selector := s.Selector
	if selector == nil {
		selector = s.MetricSelector
	}
	return autoscalingv2.MetricIdentifier{Name: s.MetricName, Selector: selector}
}

func metricUp(m *Metric) autoscalingv2.MetricSpec {
	out := autoscalingv2.MetricSpec{Type: m.Type}
	if s := m.Resource; s != nil {
		out.Resource = &autoscalingv2.ResourceMetricSource{Name: s.Name, Target: target(s.TargetAverageUtilization, s.TargetAverageValue, nil)}
	}
	if s := m.ContainerResource; s != nil {
		out.ContainerResource = &autoscalingv2.ContainerResourceMetricSource{Name: s.Name, Container: s.Container, Target: target(s.TargetAverageUtilization, s.TargetAverageValue, nil)}
	}
	if s := m.Pods; s != nil {
		out.Pods = &autoscalingv2.PodsMetricSource{Metric: identifier(s), Target: target(nil, s.TargetAverageValue, nil)}
	}
	if s := m.Object; s != nil {
		out.Object = &autoscalingv2.ObjectMetricSource{Metric: identifier(s), Target: target(nil, s.AverageValue, positive(s.TargetValue))}
		if s.Target != nil {
			out.Object.DescribedObject = *s.Target
		}
	}
	if s := m.External; s != nil {
		out.External = &autoscalingv2.ExternalMetricSource{Metric: identifier(s), Target: target(nil, s.TargetAverageValue, s.TargetValue)}
	}
	return out
}

func metricDown(m *autoscalingv2.MetricSpec) Metric {
	out := Metric{Type: m.Type}
	if s := m.Resource; s != nil {
		out.Resource = &MetricSource{Name: s.Name, TargetAverageUtilization: s.Target.AverageUtilization, TargetAverageValue: s.Target.AverageValue}
	}
	if s := m.ContainerResource; s != nil {
		out.ContainerResource = &MetricSource{Name: s.Name, Container: s.Container, TargetAverageUtilization: s.Target.AverageUtilization, TargetAverageValue: s.Target.AverageValue}
	}
	if s := m.Pods; s != nil {
		out.Pods = &MetricSource{MetricName: s.Metric.Name, Selector: s.Metric.Selector, TargetAverageValue: s.Target.AverageValue}
	}
	if s := m.Object; s != nil {
		ref := s.DescribedObject
		out.Object = &MetricSource{Target: &ref, MetricName: s.Metric.Name, Selector: s.Metric.Selector, TargetValue: orZero(s.Target.Value), AverageValue: s.Target.AverageValue}
	}
	if s := m.External; s != nil {
		out.External = &MetricSource{MetricName: s.Metric.Name, MetricSelector: s.Metric.Selector, TargetValue: s.Target.Value, TargetAverageValue: s.Target.AverageValue}
	}
	return out
}

func measuredUp(m *Metric) autoscalingv2.MetricStatus {
	out := autoscalingv2.MetricStatus{Type: m.Type}
	value := func(s *MetricSource) autoscalingv2.MetricValueStatus {
		return autoscalingv2.MetricValueStatus{AverageUtilization: s.CurrentAverageUtilization, AverageValue: s.CurrentAverageValue, Value: s.CurrentValue}
	}
	if s := m.Resource; s != nil {
		out.Resource = &autoscalingv2.ResourceMetricStatus{Name: s.Name, Current: value(s)}
	}
	if s := m.ContainerResource; s != nil {
		out.ContainerResource = &autoscalingv2.ContainerResourceMetricStatus{Name: s.Name, Container: s.Container, Current: value(s)}
	}
	if s := m.Pods; s != nil {
		out.Pods = &autoscalingv2.PodsMetricStatus{Metric: identifier(s), Current: value(s)}
	}
	if s := m.Object; s != nil {
		out.Object = &autoscalingv2.ObjectMetricStatus{Metric: identifier(s), Current: autoscalingv2.MetricValueStatus{AverageValue: s.AverageValue, Value: positive(s.CurrentValue)}}
		if s.Target != nil {
			out.Object.DescribedObject = *s.Target
		}
	}
	if s := m.External; s != nil {
		out.External = &autoscalingv2.ExternalMetricStatus{Metric: identifier(s), Current: autoscalingv2.MetricValueStatus{AverageValue: s.CurrentAverageValue, Value: positive(s.CurrentValue)}}
	}
	return out
}

func measuredDown(m *autoscalingv2.MetricStatus) Metric {
	out := Metric{Type: m.Type}
	if s := m.Resource; s != nil {
		out.Resource = &MetricSource{Name: s.Name, CurrentAverageUtilization: s.Current.AverageUtilization, CurrentAverageValue: s.Current.AverageValue}
	}
	if s := m.ContainerResource; s != nil {
		out.ContainerResource = &MetricSource{Name: s.Name, Container: s.Container, CurrentAverageUtilization: s.Current.AverageUtilization, CurrentAverageValue: s.Current.AverageValue}
	}
	if s := m.Pods; s != nil {
		out.Pods = &MetricSource{MetricName: s.Metric.Name, Selector: s.Metric.Selector, CurrentAverageValue: s.Current.AverageValue}
	}
	if s := m.Object; s != nil {
		ref := s.DescribedObject
		out.Object = &MetricSource{Target: &ref, MetricName: s.Metric.Name, Selector: s.Metric.Selector, CurrentValue: orZero(s.Current.Value), AverageValue: s.Current.AverageValue}
	}
	if s := m.External; s != nil {
		out.External = &MetricSource{MetricName: s.Metric.Name, MetricSelector: s.Metric.Selector, CurrentValue: orZero(s.Current.Value), CurrentAverageValue: s.Current.AverageValue}
	}
	return out
}
