package core

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func (v *podValidator) checkScheduling() {
	s, at := v.spec, v.at
	v.add(check.Labels(at.Child("nodeSelector"), s.NodeSelector)...)
	for i := range s.Tolerations {
		v.checkToleration(at.Child("tolerations").Index(i), &s.Tolerations[i])
	}
	gates := map[string]bool{}
	for i, g := range s.SchedulingGates {
		at := at.Child("schedulingGates").Index(i)
		v.add(check.QualifiedName(at, g.Name)...)
		if gates[g.Name] {
			v.add(field.Duplicate(at, g.Name))
		}
		gates[g.Name] = true
	}
	v.checkSpread(at.Child("topologySpreadConstraints"))
	if a := s.Affinity; a != nil {
		at := at.Child("affinity")
		if a.NodeAffinity != nil {
			v.checkNodeAffinity(at.Child("nodeAffinity"), a.NodeAffinity)
		}
		if p := a.PodAffinity; p != nil {
			v.checkPodTerms(at.Child("podAffinity"), p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if p := a.PodAntiAffinity; p != nil {
			v.checkPodTerms(at.Child("podAntiAffinity"), p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
}

var taintEffects = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}

func (v *podValidator) checkToleration(at *field.Path, t *corev1.Toleration) {
	if t.Key != "" {
		v.add(check.QualifiedName(at.Child("key"), t.Key)...)
	}
	if t.Key == "" && t.Operator != corev1.TolerationOpExists {
		v.add(field.Invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
	}
	if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
		v.add(field.Invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
	}
	switch t.Operator {
	case corev1.TolerationOpEqual, "":
		v.add(check.Each(at.Child("operator"), t.Value, validation.IsValidLabelValue(t.Value))...)
	case corev1.TolerationOpExists:
		if t.Value != "" {
			v.add(field.Invalid(at.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'"))
		}
	default:
		v.add(field.NotSupported(at.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
	}
	v.add(check.OneOfOrEmpty(at.Child("effect"), t.Effect, taintEffects...)...)
}

func (v *podValidator) checkSpread(at *field.Path) {
	for i, c := range v.spec.TopologySpreadConstraints {
		at := at.Index(i)
		if c.MaxSkew <= 0 {
			v.add(field.Invalid(at.Child("maxSkew"), c.MaxSkew, "must be greater than zero"))
		}
		if c.TopologyKey == "" {
			v.add(field.Required(at.Child("topologyKey"), "can not be empty"))
		}
		v.add(check.Exactly(at.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, corev1.DoNotSchedule, corev1.ScheduleAnyway)...)
		if len(c.MatchLabelKeys) > 0 && c.LabelSelector == nil {
			v.add(field.Forbidden(at.Child("matchLabelKeys"), "must not be specified when labelSelector is not set"))
		}
		if n := c.MinDomains; n != nil {
			if *n <= 0 {
				v.add(field.Invalid(at.Child("minDomains"), *n, "must be greater than zero"))
			}
			if c.WhenUnsatisfiable != corev1.DoNotSchedule {
				v.add(field.Invalid(at.Child("minDomains"), *n, fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable)))
			}
		}
		for name, p := range map[string]*corev1.NodeInclusionPolicy{"nodeAffinityPolicy": c.NodeAffinityPolicy, "nodeTaintsPolicy": c.NodeTaintsPolicy} {
			if p != nil {
				v.add(check.Exactly(at.Child(name), *p, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore)...)
			}
		}
		for _, other := range v.spec.TopologySpreadConstraints[i+1:] {
			if other.TopologyKey == c.TopologyKey && other.WhenUnsatisfiable == c.WhenUnsatisfiable {
				v.add(field.Duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable)))
			}
		}
		v.add(check.Selector(at.Child("labelSelector"), c.LabelSelector)...)
	}
}

func (v *podValidator) checkNodeAffinity(at *field.Path, a *corev1.NodeAffinity) {
	if r := a.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
		v.add(ValidateNodeSelector(r, at.Child("requiredDuringSchedulingIgnoredDuringExecution"))...)
	}
	for i := range a.PreferredDuringSchedulingIgnoredDuringExecution {
		p, at := &a.PreferredDuringSchedulingIgnoredDuringExecution[i], at.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
		v.checkWeight(at.Child("weight"), p.Weight)
		v.add(checkNodeTerm(at.Child("preference"), &p.Preference)...)
	}
}

func (v *podValidator) checkWeight(at *field.Path, weight int32) {
	if weight < 1 || weight > 100 {
		v.add(field.Invalid(at, weight, "must be in the range 1-100"))
	}
}

// ValidateNodeSelector checks a choice of nodes; it needs at least one term.
func ValidateNodeSelector(s *corev1.NodeSelector, at *field.Path) field.ErrorList {
	at = at.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		return errorList{field.Required(at, "must have at least one node selector term")}
	}
	var errs errorList
	for i := range s.NodeSelectorTerms {
		errs = append(errs, checkNodeTerm(at.Index(i), &s.NodeSelectorTerms[i])...)
	}
	return errs
}

func checkNodeTerm(at *field.Path, t *corev1.NodeSelectorTerm) errorList {
	var errs errorList
	for i, r := range t.MatchExpressions {
		at := at.Child("matchExpressions").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) == 0 {
				errs = append(errs, field.Required(at.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'"))
			}
		case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				errs = append(errs, field.Forbidden(at.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"))
			}
		case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
			if len(r.Values) != 1 {
				errs = append(errs, field.Required(at.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'"))
			}
		default:
			errs = append(errs, field.Invalid(at.Child("operator"), r.Operator, "not a valid selector operator"))
		}
		errs = append(errs, check.QualifiedName(at.Child("key"), r.Key)...)
	}
	for i, r := range t.MatchFields {
		at := at.Child("matchFields").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) != 1 {
				errs = append(errs, field.Required(at.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"))
			}
		default:
			errs = append(errs, field.Invalid(at.Child("operator"), r.Operator, "not a valid selector operator"))
		}
		if r.Key != "metadata.name" {
			errs = append(errs, field.Invalid(at.Child("key"), r.Key, "not a valid field selector key"))
		}
	}
	return errs
}

func (v *podValidator) checkPodTerms(at *field.Path, required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
	for i := range required {
		v.checkPodTerm(at.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i), &required[i])
	}
	for i := range preferred {
		at := at.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
		v.checkWeight(at.Child("weight"), preferred[i].Weight)
		v.checkPodTerm(at.Child("podAffinityTerm"), &preferred[i].PodAffinityTerm)
	}
}

func (v *podValidator) checkPodTerm(at *field.Path, t *corev1.PodAffinityTerm) {
	v.add(check.Selector(at.Child("labelSelector"), t.LabelSelector)...)
	v.add(check.Selector(at.Child("namespaceSelector"), t.NamespaceSelector)...)
	for i, ns := range t.Namespaces {
		v.add(check.DNSLabel(at.Child("namespaces").Index(i), ns)...)
	}
	if t.TopologyKey == "" {
		v.add(field.Required(at.Child("topologyKey"), "can not be empty"))
	}
	v.add(check.QualifiedName(at.Child("topologyKey"), t.TopologyKey)...)
}
