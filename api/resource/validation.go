package resource

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	resourcev1 "k8s.io/api/resource/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/dynamic-resource-allocation/cel"

	"knarr.dev/knarr/api/check"
)

// compile checks an expression over a device. The environment is made by the
// first expression.
var compile = sync.OnceValue(func() func(string) error {
	c := cel.GetCompiler(cel.Features{})
	return func(text string) error {
		if r := c.CompileCELExpression(text, cel.Options{}); r.Error != nil {
			return fmt.Errorf("%s", r.Error.Detail)
		}
		return nil
	}
})

func validateClass(c *resourcev1.DeviceClass) field.ErrorList {
	at := field.NewPath("spec")
	errs := checkSelectors(at.Child("selectors"), c.Spec.Selectors)
	if n := len(c.Spec.Config); n > resourcev1.DeviceConfigMaxSize {
		errs = append(errs, field.TooMany(at.Child("config"), n, resourcev1.DeviceConfigMaxSize))
	}
	for i := range c.Spec.Config {
		errs = append(errs, checkConfiguration(at.Child("config").Index(i), &c.Spec.Config[i].DeviceConfiguration)...)
	}
	if n := c.Spec.ExtendedResourceName; n != nil && !extended(*n) {
		errs = append(errs, field.Invalid(at.Child("extendedResourceName"), *n, "must be a valid extended resource name"))
	}
	return errs
}

// extended tells whether a name is one of a resource that a device plugin could have.
func extended(name string) bool {
	domain, _, ok := strings.Cut(name, "/")
	return ok && len(validation.IsQualifiedName(name)) == 0 && !strings.HasPrefix(name, "requests.") && !strings.HasSuffix(domain, "kubernetes.io")
}

func validateClassUpdate(c, _ *resourcev1.DeviceClass) field.ErrorList { return validateClass(c) }

func checkSelectors(at *field.Path, list []resourcev1.DeviceSelector) field.ErrorList {
	if n := len(list); n > resourcev1.DeviceSelectorsMaxSize {
		return field.ErrorList{field.TooMany(at, n, resourcev1.DeviceSelectorsMaxSize)}
	}
	var errs field.ErrorList
	for i, s := range list {
		at := at.Index(i).Child("cel")
		if s.CEL == nil {
			errs = append(errs, field.Required(at, ""))
			continue
		}
		at = at.Child("expression")
		if n := len(s.CEL.Expression); n > resourcev1.CELSelectorExpressionMaxLength {
			errs = append(errs, field.TooLong(at, "", resourcev1.CELSelectorExpressionMaxLength))
		} else if err := compile()(s.CEL.Expression); err != nil {
			errs = append(errs, field.Invalid(at, s.CEL.Expression, err.Error()))
		}
	}
	return errs
}

func checkConfiguration(at *field.Path, c *resourcev1.DeviceConfiguration) field.ErrorList {
	at = at.Child("opaque")
	if c.Opaque == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	errs := driverName(at.Child("driver"), c.Opaque.Driver)
	return append(errs, checkParameters(at.Child("parameters"), c.Opaque.Parameters, resourcev1.OpaqueParametersMaxLength)...)
}

func checkParameters(at *field.Path, p runtime.RawExtension, most int) field.ErrorList {
	switch text := strings.TrimSpace(string(p.Raw)); {
	case text == "" || text == "null":
		return field.ErrorList{field.Required(at, "")}
	case len(text) > most:
		return field.ErrorList{field.TooLong(at, "", most)}
	case !strings.HasPrefix(text, "{"):
		return field.ErrorList{field.Invalid(at, "<value omitted>", "must be a valid JSON object")}
	}
	return nil
}

func driverName(at *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	var errs field.ErrorList
	if len(name) > resourcev1.DriverNameMaxLength {
		errs = append(errs, field.TooLong(at, "", resourcev1.DriverNameMaxLength))
	}
	return append(errs, check.DNSSubdomain(at, name)...)
}

// poolName checks a pool's name: subdomains that slashes separate.
func poolName(at *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	if len(name) > resourcev1.PoolNameMaxLength {
		return field.ErrorList{field.TooLong(at, "", resourcev1.PoolNameMaxLength)}
	}
	var errs field.ErrorList
	for part := range strings.SplitSeq(name, "/") {
		errs = append(errs, check.DNSSubdomain(at, part)...)
	}
	return errs
}

func validateClaim(c *resourcev1.ResourceClaim) field.ErrorList {
	return checkClaimSpec(field.NewPath("spec"), &c.Spec)
}

func validateClaimUpdate(c, old *resourcev1.ResourceClaim) field.ErrorList {
	errs := check.Immutable(field.NewPath("spec"), c.Spec, old.Spec)
	if len(errs) > 0 {
		return errs
	}
	return validateClaim(c)
}

func validateTemplate(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
	at := field.NewPath("spec")
	errs := check.Labels(at.Child("metadata", "labels"), t.Spec.Labels)
	errs = append(errs, apivalidation.ValidateAnnotations(t.Spec.Annotations, at.Child("metadata", "annotations"))...)
	return append(errs, checkClaimSpec(at.Child("spec"), &t.Spec.Spec)...)
}

func validateTemplateUpdate(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
	return check.Immutable(field.NewPath("spec"), t.Spec, old.Spec)
}

// names are the requests that constraints and results can name: "request" and
// "request/subrequest".
type names []string

func requestNames(d *resourcev1.DeviceClaim) names {
	var out names
	for _, r := range d.Requests {
		out = append(out, r.Name)
		for _, s := range r.FirstAvailable {
			out = append(out, r.Name+"/"+s.Name)
		}
	}
	return out
}

func (n names) check(at *field.Path, name string) field.ErrorList {
	if slices.Contains(n, name) {
		return nil
	}
	return field.ErrorList{field.Invalid(at, name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'")}
}

func (n names) checkAll(at *field.Path, list []string) field.ErrorList {
	var errs field.ErrorList
	for i, name := range list {
		if slices.Contains(list[:i], name) {
			errs = append(errs, field.Duplicate(at.Index(i), name))
			continue
		}
		errs = append(errs, n.check(at.Index(i), name)...)
	}
	return errs
}

func checkClaimSpec(at *field.Path, s *resourcev1.ResourceClaimSpec) field.ErrorList {
	at = at.Child("devices")
	d := &s.Devices
	var errs field.ErrorList
	for _, l := range []struct {
		name    string
		n, most int
	}{{"requests", len(d.Requests), resourcev1.DeviceRequestsMaxSize}, {"constraints", len(d.Constraints), resourcev1.DeviceConstraintsMaxSize}, {"config", len(d.Config), resourcev1.DeviceConfigMaxSize}} {
		if l.n > l.most {
			errs = append(errs, field.TooMany(at.Child(l.name), l.n, l.most))
		}
	}
	seen := map[string]bool{}
	for i := range d.Requests {
		r, at := &d.Requests[i], at.Child("requests").Index(i)
		if seen[r.Name] {
			errs = append(errs, field.Duplicate(at, r.Name))
		}
		seen[r.Name] = true
		errs = append(errs, checkRequest(at, r)...)
	}
	known := requestNames(d)
	for i, c := range d.Constraints {
		errs = append(errs, checkConstraint(at.Child("constraints").Index(i), &c, known)...)
	}
	for i := range d.Config {
		at := at.Child("config").Index(i)
		errs = append(errs, known.checkAll(at.Child("requests"), d.Config[i].Requests)...)
		errs = append(errs, checkConfiguration(at, &d.Config[i].DeviceConfiguration)...)
	}
	return errs
}

func checkConstraint(at *field.Path, c *resourcev1.DeviceConstraint, known names) field.ErrorList {
	errs := known.checkAll(at.Child("requests"), c.Requests)
	switch {
	case c.MatchAttribute != nil && c.DistinctAttribute != nil, c.MatchAttribute == nil && c.DistinctAttribute == nil:
		return append(errs, field.Required(at, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`))
	case c.MatchAttribute != nil:
		return append(errs, fullyQualified(at.Child("matchAttribute"), string(*c.MatchAttribute))...)
	}
	return append(errs, fullyQualified(at.Child("distinctAttribute"), string(*c.DistinctAttribute))...)
}

func checkRequest(at *field.Path, r *resourcev1.DeviceRequest) field.ErrorList {
	errs := check.DNSLabel(at.Child("name"), r.Name)
	switch exactly, first := r.Exactly != nil, len(r.FirstAvailable) > 0; {
	case exactly && first:
		errs = append(errs, field.Invalid(at, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"))
	case !exactly && !first:
		errs = append(errs, field.Required(at, "exactly one of `exactly` or `firstAvailable` is required"))
	case exactly:
		e := r.Exactly
		errs = append(errs, checkWanted(at.Child("exactly"), e.DeviceClassName, e.Selectors, e.AllocationMode, e.Count, e.Tolerations, e.Capacity)...)
	}
	if n := len(r.FirstAvailable); n > resourcev1.FirstAvailableDeviceRequestMaxSize {
		errs = append(errs, field.TooMany(at.Child("firstAvailable"), n, resourcev1.FirstAvailableDeviceRequestMaxSize))
	}
	seen := map[string]bool{}
	for i := range r.FirstAvailable {
		s, at := &r.FirstAvailable[i], at.Child("firstAvailable").Index(i)
		if seen[s.Name] {
			errs = append(errs, field.Duplicate(at, s.Name))
		}
		seen[s.Name] = true
		errs = append(errs, check.DNSLabel(at.Child("name"), s.Name)...)
		errs = append(errs, checkWanted(at, s.DeviceClassName, s.Selectors, s.AllocationMode, s.Count, s.Tolerations, s.Capacity)...)
	}
	return errs
}

func checkWanted(at *field.Path, class string, selectors []resourcev1.DeviceSelector, mode resourcev1.DeviceAllocationMode, count int64,
	tolerations []resourcev1.DeviceToleration, capacity *resourcev1.CapacityRequirements) field.ErrorList {
	errs := check.RequiredName(at.Child("deviceClassName"), class)
	errs = append(errs, checkSelectors(at.Child("selectors"), selectors)...)
	switch mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			errs = append(errs, field.Invalid(at.Child("count"), count, "must not be specified when allocationMode is 'All'"))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		if count <= 0 {
			errs = append(errs, field.Invalid(at.Child("count"), count, "must be greater than zero"))
		}
	default:
		errs = append(errs, field.NotSupported(at.Child("allocationMode"), mode, []resourcev1.DeviceAllocationMode{resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount}))
	}
	if n := len(tolerations); n > resourcev1.DeviceTolerationsMaxLength {
		errs = append(errs, field.TooMany(at.Child("tolerations"), n, resourcev1.DeviceTolerationsMaxLength))
	}
	for i := range tolerations {
		errs = append(errs, checkToleration(at.Child("tolerations").Index(i), &tolerations[i])...)
	}
	if capacity != nil {
		for name := range capacity.Requests {
			errs = append(errs, qualified(at.Child("capacity", "requests").Key(string(name)), string(name))...)
		}
	}
	return errs
}

var taintEffects = []resourcev1.DeviceTaintEffect{resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone}

func checkToleration(at *field.Path, t *resourcev1.DeviceToleration) field.ErrorList {
	var errs field.ErrorList
	if t.Key != "" {
		errs = append(errs, check.QualifiedName(at.Child("key"), t.Key)...)
	}
	switch t.Operator {
	case resourcev1.DeviceTolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(at.Child("value"), t.Value, "must be empty for operator `Exists`"))
		}
	case resourcev1.DeviceTolerationOpEqual:
		errs = append(errs, check.Each(at.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
	default:
		errs = append(errs, check.OneOf(at.Child("operator"), t.Operator, resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists)...)
	}
	return append(errs, check.OneOfOrEmpty(at.Child("effect"), t.Effect, taintEffects...)...)
}

// qualified checks a name that may begin with a domain and a slash.
func qualified(at *field.Path, name string) field.ErrorList {
	parts := strings.Split(name, "/")
	switch len(parts) {
	case 1:
		return identifier(at, parts[0])
	case 2:
		var errs field.ErrorList
		if parts[0] == "" {
			errs = append(errs, field.Required(at, "the domain must not be empty"))
		} else {
			errs = append(errs, driverName(at, parts[0])...)
		}
		return append(errs, identifier(at, parts[1])...)
	}
	return field.ErrorList{field.Invalid(at, name, "a qualified name must be a name or a domain and a name separated by a slash")}
}

func identifier(at *field.Path, name string) field.ErrorList {
	switch {
	case name == "":
		return field.ErrorList{field.Required(at, "the name must not be empty")}
	case len(name) > resourcev1.DeviceMaxIDLength:
		return field.ErrorList{field.TooLong(at, "", resourcev1.DeviceMaxIDLength)}
	}
	return check.Each(at, name, validation.IsCIdentifier(name))
}

func fullyQualified(at *field.Path, name string) field.ErrorList {
	if !strings.Contains(name, "/") {
		return field.ErrorList{field.Invalid(at, name, "a fully qualified name must be a domain and a name separated by a slash")}
	}
	return qualified(at, name)
}

func validateClaimStatus(c, old *resourcev1.ResourceClaim) field.ErrorList {
	at := field.NewPath("status")
	errs := checkReserved(at.Child("reservedFor"), c)
	if c.Status.Allocation == nil {
		return errs
	}
	known := requestNames(&c.Spec.Devices)
	at = at.Child("allocation")
	if old.Status.Allocation != nil {
		errs = append(errs, check.Immutable(at, c.Status.Allocation, old.Status.Allocation)...)
	}
	if n := len(c.Status.Allocation.Devices.Results); n > resourcev1.AllocationResultsMaxSize {
		errs = append(errs, field.TooMany(at.Child("devices", "results"), n, resourcev1.AllocationResultsMaxSize))
	}
	for i, r := range c.Status.Allocation.Devices.Results {
		at := at.Child("devices", "results").Index(i)
		errs = append(errs, known.check(at.Child("request"), r.Request)...)
		errs = append(errs, driverName(at.Child("driver"), r.Driver)...)
		errs = append(errs, poolName(at.Child("pool"), r.Pool)...)
		errs = append(errs, check.DNSLabel(at.Child("device"), r.Device)...)
	}
	for i := range c.Status.Allocation.Devices.Config {
		conf, at := &c.Status.Allocation.Devices.Config[i], at.Child("devices", "config").Index(i)
		errs = append(errs, check.OneOf(at.Child("source"), conf.Source, resourcev1.AllocationConfigSourceClaim, resourcev1.AllocationConfigSourceClass)...)
		errs = append(errs, known.checkAll(at.Child("requests"), conf.Requests)...)
		errs = append(errs, checkConfiguration(at, &conf.DeviceConfiguration)...)
	}
	return errs
}

func checkReserved(at *field.Path, c *resourcev1.ResourceClaim) field.ErrorList {
	var errs field.ErrorList
	list := c.Status.ReservedFor
	if n := len(list); n > resourcev1.ResourceClaimReservedForMaxSize {
		errs = append(errs, field.TooMany(at, n, resourcev1.ResourceClaimReservedForMaxSize))
	}
	for i, r := range list {
		at := at.Index(i)
		errs = append(errs, check.Required(at.Child("resource"), r.Resource)...)
		errs = append(errs, check.Required(at.Child("name"), r.Name)...)
		errs = append(errs, check.Required(at.Child("uid"), string(r.UID))...)
		if slices.ContainsFunc(list[:i], func(o resourcev1.ResourceClaimConsumerReference) bool { return o.UID == r.UID }) {
			errs = append(errs, field.Duplicate(at.Child("uid"), r.UID))
		}
	}
	if len(list) > 0 && c.Status.Allocation == nil {
		errs = append(errs, field.Forbidden(at, "may not be specified when `allocated` is not set"))
	}
	return errs
}
