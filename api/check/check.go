// Package check holds the validations that kinds of several groups share. Paths,
// types and wording of errors are the ones that Kubernetes' clients know.
package check

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Errors is a list of validation errors.
type Errors = field.ErrorList

// Each makes one Invalid of each message.
func Each(at *field.Path, value any, messages []string) Errors {
	var errs Errors
	for _, m := range messages {
		errs = append(errs, field.Invalid(at, value, m))
	}
	return errs
}

// DNSLabel checks a name that is one label.
func DNSLabel(at *field.Path, name string) Errors {
	return Each(at, name, validation.IsDNS1123Label(name))
}

// DNSSubdomain checks a name of labels.
func DNSSubdomain(at *field.Path, name string) Errors {
	return Each(at, name, validation.IsDNS1123Subdomain(name))
}

// RequiredName checks a subdomain that must be there.
func RequiredName(at *field.Path, name string) Errors {
	if name == "" {
		return Errors{field.Required(at, "")}
	}
	return DNSSubdomain(at, name)
}

// Required refuses an empty string.
func Required(at *field.Path, value string) Errors {
	if value == "" {
		return Errors{field.Required(at, "")}
	}
	return nil
}

// OneOf refuses a value that is not among supported, and an absent one.
func OneOf[T ~string](at *field.Path, value T, supported ...T) Errors {
	if value == "" {
		return Errors{field.Required(at, "")}
	}
	return OneOfOrEmpty(at, value, supported...)
}

// OneOfOrEmpty refuses a value that is neither empty nor among supported.
func OneOfOrEmpty[T ~string](at *field.Path, value T, supported ...T) Errors {
	if value == "" || slices.Contains(supported, value) {
		return nil
	}
	return Errors{field.NotSupported(at, value, supported)}
}

// Exactly refuses a value that is not among supported, an empty one too.
func Exactly[T ~string](at *field.Path, value T, supported ...T) Errors {
	if slices.Contains(supported, value) {
		return nil
	}
	return Errors{field.NotSupported(at, value, supported)}
}

// Port checks a port number.
func Port(at *field.Path, port int32) Errors {
	return Each(at, port, validation.IsValidPortNum(int(port)))
}

// PortNumberOrName checks a port that may be a name.
func PortNumberOrName(at *field.Path, port intstr.IntOrString) Errors {
	switch port.Type {
	case intstr.Int:
		return Each(at, port.IntValue(), validation.IsValidPortNum(port.IntValue()))
	case intstr.String:
		return Each(at, port.StrVal, validation.IsValidPortName(port.StrVal))
	}
	return Errors{field.InternalError(at, nil)}
}

// NonNegative refuses a value below zero.
func NonNegative[T ~int | ~int32 | ~int64](at *field.Path, value T) Errors {
	return apivalidation.ValidateNonnegativeField(int64(value), at)
}

// NonNegativePointer is NonNegative for a value that may be absent.
func NonNegativePointer[T ~int | ~int32 | ~int64](at *field.Path, value *T) Errors {
	if value == nil {
		return nil
	}
	return NonNegative(at, *value)
}

// Quantity refuses a quantity below zero.
func Quantity(at *field.Path, q resource.Quantity) Errors {
	if q.Sign() < 0 {
		return Errors{field.Invalid(at, q.String(), apivalidation.IsNegativeErrorMsg)}
	}
	return nil
}

// IntOrPercent checks a number or a percentage; neither may be negative.
func IntOrPercent(at *field.Path, v *intstr.IntOrString) Errors {
	if v == nil {
		return nil
	}
	if v.Type == intstr.Int {
		return NonNegative(at, v.IntVal)
	}
	return Each(at, *v, validation.IsValidPercent(v.StrVal))
}

// AtMostHundredPercent refuses more than 100%.
func AtMostHundredPercent(at *field.Path, v *intstr.IntOrString) Errors {
	if n, ok := percent(v); ok && n > 100 {
		return Errors{field.Invalid(at, *v, "must not be greater than 100%")}
	}
	return nil
}

// IsZero tells whether a number or percentage is nothing.
func IsZero(v *intstr.IntOrString) bool {
	if v == nil {
		return true
	}
	if n, ok := percent(v); ok {
		return n == 0
	}
	return v.Type == intstr.Int && v.IntVal == 0
}

func percent(v *intstr.IntOrString) (int, bool) {
	if v == nil || v.Type != intstr.String || len(validation.IsValidPercent(v.StrVal)) > 0 {
		return 0, false
	}
	n := 0
	for _, c := range strings.TrimSuffix(v.StrVal, "%") {
		n = min(n*10+int(c-'0'), 1<<20)
	}
	return n, true
}

// Immutable refuses a change.
func Immutable(at *field.Path, value, old any) Errors {
	return apivalidation.ValidateImmutableField(value, old, at)
}

// Selector checks a label selector.
func Selector(at *field.Path, s *metav1.LabelSelector) Errors {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, at)
}

// PathSegment is the check of names that only have to fit into a URL. It has the
// form of a kind's ValidName.
func PathSegment(name string, prefix bool) []string {
	if prefix {
		return path.IsValidPathSegmentPrefix(name)
	}
	return path.IsValidPathSegmentName(name)
}

// Labels checks a map of labels.
func Labels(at *field.Path, m map[string]string) Errors { return metavalidation.ValidateLabels(m, at) }

// QualifiedName checks a name with an optional DNS prefix.
func QualifiedName(at *field.Path, name string) Errors {
	return metavalidation.ValidateLabelName(name, at)
}

// Finalizers checks that names which hold objects back are the core's own, or have a
// domain. Their form is checked with the other metadata.
func Finalizers(at *field.Path, names []string) Errors {
	var errs Errors
	for i, n := range names {
		errs = append(errs, ownFinalizer(at.Index(i), n)...)
	}
	return errs
}

// Finalizer checks one name that holds an object back.
func Finalizer(at *field.Path, name string) Errors {
	if errs := QualifiedName(at, name); len(errs) > 0 {
		return errs
	}
	return ownFinalizer(at, name)
}

func ownFinalizer(at *field.Path, name string) Errors {
	switch name {
	case string(corev1.FinalizerKubernetes), metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents:
		return nil
	}
	if !strings.Contains(name, "/") {
		return Errors{field.Invalid(at, name, "name is neither a standard finalizer name nor is it fully qualified")}
	}
	return nil
}

// BalancerAddress checks where a load balancer is reached: by an address, or a name.
func BalancerAddress(at *field.Path, ip, hostname string) Errors {
	var errs Errors
	if ip != "" {
		errs = append(errs, validation.IsValidIPForLegacyField(at.Child("ip"), ip, false, nil)...)
	}
	if hostname != "" {
		errs = append(errs, DNSSubdomain(at.Child("hostname"), hostname)...)
		if _, err := netip.ParseAddr(hostname); err == nil {
			errs = append(errs, field.Invalid(at.Child("hostname"), hostname, "must be a DNS name, not an IP address"))
		}
	}
	return errs
}

// Reachable refuses addresses that mean something else on every machine.
func Reachable(at *field.Path, ip string) Errors {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return nil
	}
	var errs Errors
	for _, c := range []struct {
		is  bool
		why string
	}{
		{a.IsUnspecified(), "may not be unspecified (0.0.0.0 or ::)"},
		{a.IsLoopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"},
		{a.IsLinkLocalUnicast(), "may not be in the link-local range (169.254.0.0/16, fe80::/10)"},
		{a.IsLinkLocalMulticast(), "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"},
	} {
		if c.is {
			errs = append(errs, field.Invalid(at, ip, c.why))
		}
	}
	return errs
}

// AccessModes checks the access modes of volumes and claims.
func AccessModes(at *field.Path, modes []corev1.PersistentVolumeAccessMode) Errors {
	if len(modes) == 0 {
		return Errors{field.Required(at, "")}
	}
	var errs Errors
	alone := false
	for _, m := range modes {
		errs = append(errs, Exactly(at, m, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod)...)
		alone = alone || m == corev1.ReadWriteOncePod
	}
	if alone && len(modes) > 1 {
		errs = append(errs, field.Forbidden(at, "may not use ReadWriteOncePod with other access modes"))
	}
	return errs
}

// Count is a number of pods in a status.
type Count struct {
	Name string // its field
	N    int32
}

// Counts checks that no count of pods is negative or above the number of pods.
func Counts(at *field.Path, total int32, parts ...Count) Errors {
	errs := NonNegative(at.Child("replicas"), total)
	for _, p := range parts {
		errs = append(errs, NonNegative(at.Child(p.Name), p.N)...)
		if p.N > total {
			errs = append(errs, field.Invalid(at.Child(p.Name), p.N, "cannot be greater than status.replicas"))
		}
	}
	return errs
}
