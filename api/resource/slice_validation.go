package resource

import (
	"fmt"
	"strings"

	"github.com/blang/semver/v4"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/core"
)

func validateSlice(s *resourcev1.ResourceSlice) field.ErrorList {
	at := field.NewPath("spec")
	errs := driverName(at.Child("driver"), s.Spec.Driver)
	errs = append(errs, checkPool(at.Child("pool"), &s.Spec.Pool)...)
	errs = append(errs, checkPlace(at, &s.Spec)...)
	if n := len(s.Spec.Devices); n > resourcev1.ResourceSliceMaxDevices {
		errs = append(errs, field.TooMany(at.Child("devices"), n, resourcev1.ResourceSliceMaxDevices))
	}
	if len(s.Spec.Devices) > 0 && len(s.Spec.SharedCounters) > 0 {
		errs = append(errs, field.Invalid(at, "", "only one of `sharedCounters` or `devices` is allowed"))
	}
	seen := map[string]bool{}
	for i := range s.Spec.Devices {
		d, at := &s.Spec.Devices[i], at.Child("devices").Index(i)
		if seen[d.Name] {
			errs = append(errs, field.Duplicate(at, d.Name))
		}
		seen[d.Name] = true
		errs = append(errs, checkDevice(at, d)...)
	}
	return append(errs, checkCounters(at.Child("sharedCounters"), s.Spec.SharedCounters)...)
}

func validateSliceUpdate(s, old *resourcev1.ResourceSlice) field.ErrorList {
	at := field.NewPath("spec")
	errs := validateSlice(s)
	errs = append(errs, check.Immutable(at.Child("driver"), s.Spec.Driver, old.Spec.Driver)...)
	errs = append(errs, check.Immutable(at.Child("pool", "name"), s.Spec.Pool.Name, old.Spec.Pool.Name)...)
	return append(errs, check.Immutable(at.Child("nodeName"), s.Spec.NodeName, old.Spec.NodeName)...)
}

func checkPool(at *field.Path, p *resourcev1.ResourcePool) field.ErrorList {
	errs := poolName(at.Child("name"), p.Name)
	if p.ResourceSliceCount <= 0 {
		errs = append(errs, field.Invalid(at.Child("resourceSliceCount"), p.ResourceSliceCount, "must be greater than zero"))
	}
	if p.Generation < 0 {
		errs = append(errs, field.Invalid(at.Child("generation"), p.Generation, "must be greater than or equal to zero"))
	}
	return errs
}

// checkPlace wants one way to say which nodes have the devices.
func checkPlace(at *field.Path, s *resourcev1.ResourceSliceSpec) field.ErrorList {
	var errs field.ErrorList
	var set []string
	if s.NodeName != nil {
		set = append(set, "`nodeName`")
		if *s.NodeName == "" {
			errs = append(errs, field.Invalid(at.Child("nodeName"), *s.NodeName, "must be either unset or set to a non-empty string"))
		} else {
			errs = append(errs, check.DNSSubdomain(at.Child("nodeName"), *s.NodeName)...)
		}
	}
	if s.NodeSelector != nil {
		set = append(set, "`nodeSelector`")
		errs = append(errs, core.ValidateNodeSelector(s.NodeSelector, at.Child("nodeSelector"))...)
		if len(s.NodeSelector.NodeSelectorTerms) != 1 {
			errs = append(errs, field.Invalid(at.Child("nodeSelector", "nodeSelectorTerms"), s.NodeSelector.NodeSelectorTerms, "must have exactly one node selector term"))
		}
	}
	for _, f := range []struct {
		name  string
		value *bool
	}{{"allNodes", s.AllNodes}, {"perDeviceNodeSelection", s.PerDeviceNodeSelection}} {
		switch {
		case f.value == nil:
		case *f.value:
			set = append(set, "`"+f.name+"`")
		default:
			errs = append(errs, field.Invalid(at.Child(f.name), false, "must be either unset or set to true"))
		}
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	switch len(set) {
	case 0:
		errs = append(errs, field.Required(at, one))
	case 1:
	default:
		errs = append(errs, field.Invalid(at, fmt.Sprintf("{%s}", strings.Join(set, ", ")), one+", but multiple fields are set"))
	}
	return errs
}

func checkDevice(at *field.Path, d *resourcev1.Device) field.ErrorList {
	errs := check.DNSLabel(at.Child("name"), d.Name)
	if n := len(d.Attributes) + len(d.Capacity); n > resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice {
		errs = append(errs, field.Invalid(at, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice)))
	}
	for name, a := range d.Attributes {
		errs = append(errs, qualified(at.Child("attributes"), string(name))...)
		errs = append(errs, checkAttribute(at.Child("attributes").Key(string(name)), &a)...)
	}
	for name := range d.Capacity {
		errs = append(errs, qualified(at.Child("capacity"), string(name))...)
	}
	if n := len(d.Taints); n > resourcev1.DeviceTaintsMaxLength {
		errs = append(errs, field.TooMany(at.Child("taints"), n, resourcev1.DeviceTaintsMaxLength))
	}
	for i, t := range d.Taints {
		at := at.Child("taints").Index(i)
		errs = append(errs, check.QualifiedName(at.Child("key"), t.Key)...)
		errs = append(errs, check.Each(at.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
		errs = append(errs, check.OneOf(at.Child("effect"), t.Effect, taintEffects...)...)
	}
	return errs
}

func checkAttribute(at *field.Path, a *resourcev1.DeviceAttribute) field.ErrorList {
	var errs field.ErrorList
	set := 0
	if a.IntValue != nil {
		set++
	}
	if a.BoolValue != nil {
		set++
	}
	if a.StringValue != nil {
		set++
		if len(*a.StringValue) > resourcev1.DeviceAttributeMaxValueLength {
			errs = append(errs, field.TooLong(at.Child("string"), "", resourcev1.DeviceAttributeMaxValueLength))
		}
	}
	if a.VersionValue != nil {
		set++
		if _, err := semver.Parse(*a.VersionValue); err != nil {
			errs = append(errs, field.Invalid(at.Child("version"), *a.VersionValue, "must be a string compatible with semver.org spec 2.0.0"))
		}
		if len(*a.VersionValue) > resourcev1.DeviceAttributeMaxValueLength {
			errs = append(errs, field.TooLong(at.Child("version"), "", resourcev1.DeviceAttributeMaxValueLength))
		}
	}
	for _, n := range []int{len(a.IntValues), len(a.BoolValues), len(a.StringValues), len(a.VersionValues)} {
		if n > 0 {
			set++
		}
	}
	switch set {
	case 0:
		errs = append(errs, field.Invalid(at, "", "exactly one value must be specified"))
	case 1:
	default:
		errs = append(errs, field.Invalid(at, *a, "exactly one value must be specified"))
	}
	return errs
}

func checkCounters(at *field.Path, sets []resourcev1.CounterSet) field.ErrorList {
	if n := len(sets); n > resourcev1.ResourceSliceMaxCounterSets {
		return field.ErrorList{field.TooMany(at, n, resourcev1.ResourceSliceMaxCounterSets)}
	}
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, s := range sets {
		at := at.Index(i)
		if seen[s.Name] {
			errs = append(errs, field.Duplicate(at, s.Name))
		}
		seen[s.Name] = true
		if s.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else {
			errs = append(errs, check.DNSLabel(at.Child("name"), s.Name)...)
		}
		if len(s.Counters) == 0 {
			errs = append(errs, field.Required(at.Child("counters"), ""))
		}
		for name := range s.Counters {
			errs = append(errs, check.DNSLabel(at.Child("counters"), name)...)
		}
	}
	return errs
}
