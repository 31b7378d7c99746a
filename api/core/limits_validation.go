package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

var limitTypes = []corev1.LimitType{corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim}

func validateLimitRange(l *corev1.LimitRange) field.ErrorList {
	var errs errorList
	types := map[corev1.LimitType]bool{}
	for i := range l.Spec.Limits {
		item, at := &l.Spec.Limits[i], field.NewPath("spec", "limits").Index(i)
		errs = append(errs, checkLimitType(at.Child("type"), item.Type)...)
		if types[item.Type] {
			errs = append(errs, field.Duplicate(at.Child("type"), item.Type))
		}
		types[item.Type] = true
		errs = append(errs, checkLimitItem(at, item)...)
	}
	return errs
}

func checkLimitType(at *field.Path, t corev1.LimitType) errorList {
	if errs := check.QualifiedName(at, string(t)); len(errs) > 0 {
		return errs
	}
	if !strings.Contains(string(t), "/") && !slices.Contains(limitTypes, t) {
		return errorList{field.Invalid(at, t, "must be a standard limit type or fully qualified")}
	}
	return nil
}

func checkLimitItem(at *field.Path, item *corev1.LimitRangeItem) errorList {
	var errs errorList
	names := map[corev1.ResourceName]bool{}
	collect := func(name string, list corev1.ResourceList) {
		for n := range list {
			names[n] = true
			errs = append(errs, checkQuotaName(at.Child(name).Key(string(n)), n)...)
		}
	}
	collect("max", item.Max)
	collect("min", item.Min)
	if item.Type == corev1.LimitTypePod {
		if len(item.Default) > 0 {
			errs = append(errs, field.Forbidden(at.Child("default"), "may not be specified when `type` is 'Pod'"))
		}
		if len(item.DefaultRequest) > 0 {
			errs = append(errs, field.Forbidden(at.Child("defaultRequest"), "may not be specified when `type` is 'Pod'"))
		}
	} else {
		collect("default", item.Default)
		collect("defaultRequest", item.DefaultRequest)
	}
	if item.Type == corev1.LimitTypePersistentVolumeClaim {
		_, least := item.Min[corev1.ResourceStorage]
		_, most := item.Max[corev1.ResourceStorage]
		if !least && !most {
			errs = append(errs, field.Required(at.Child("limits"), "either minimum or maximum storage value is required, but neither was provided"))
		}
	}
	collect("maxLimitRequestRatio", item.MaxLimitRequestRatio)
	for name := range names {
		errs = append(errs, checkLimitOrder(at, item, name)...)
	}
	return errs
}

// checkLimitOrder checks min <= defaultRequest <= default <= max of one resource.
func checkLimitOrder(at *field.Path, item *corev1.LimitRangeItem, name corev1.ResourceName) errorList {
	var errs errorList
	key := string(name)
	most, hasMost := item.Max[name]
	least, hasLeast := item.Min[name]
	limit, hasLimit := item.Default[name]
	request, hasRequest := item.DefaultRequest[name]
	ratio, hasRatio := item.MaxLimitRequestRatio[name]
	add := func(child, value, format string, args ...any) {
		errs = append(errs, field.Invalid(at.Child(child).Key(key), value, fmt.Sprintf(format, args...)))
	}
	if hasLeast && hasMost && least.Cmp(most) > 0 {
		add("min", least.String(), "min value %s is greater than max value %s", least.String(), most.String())
	}
	if hasRequest && hasLeast && least.Cmp(request) > 0 {
		add("defaultRequest", request.String(), "min value %s is greater than default request value %s", least.String(), request.String())
	}
	if hasRequest && hasMost && request.Cmp(most) > 0 {
		add("defaultRequest", request.String(), "default request value %s is greater than max value %s", request.String(), most.String())
	}
	if hasRequest && hasLimit && request.Cmp(limit) > 0 {
		add("defaultRequest", request.String(), "default request value %s is greater than default limit value %s", request.String(), limit.String())
	}
	if hasLimit && hasLeast && least.Cmp(limit) > 0 {
		add("default", least.String(), "min value %s is greater than default value %s", least.String(), limit.String())
	}
	if hasLimit && hasMost && limit.Cmp(most) > 0 {
		add("default", most.String(), "default value %s is greater than max value %s", limit.String(), most.String())
	}
	if hasRatio && ratio.MilliValue() < 1000 {
		add("maxLimitRequestRatio", ratio.String(), "ratio %s is less than 1", ratio.String())
	}
	if hasRatio && hasLeast && hasMost && least.Sign() > 0 {
		if widest := float64(most.MilliValue()) / float64(least.MilliValue()); float64(ratio.MilliValue())/1000 > widest {
			add("maxLimitRequestRatio", ratio.String(), "ratio %s is greater than max/min = %f", ratio.String(), widest)
		}
	}
	if !overcommits(name) && hasLimit && hasRequest && limit.Cmp(request) != 0 {
		add("defaultRequest", request.String(), "default value %s must equal to defaultRequest value %s in resource %s", limit.String(), request.String(), name)
	}
	return errs
}

// Resources that quotas and limit ranges know beside those of containers.
var quotaResources = []corev1.ResourceName{
	corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
	corev1.ResourcePersistentVolumeClaims, corev1.ResourceConfigMaps, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
	corev1.ResourceStorage, corev1.ResourceRequestsStorage, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
	corev1.ResourceRequestsEphemeralStorage, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
}

// wholeResources are counted, not measured.
var wholeResources = []corev1.ResourceName{
	corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
	corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
}

func quotaResource(name corev1.ResourceName) bool {
	return standardResource(name) || slices.Contains(quotaResources, name) || strings.HasPrefix(string(name), "requests."+corev1.ResourceHugePagesPrefix)
}

// checkQuotaName wants a name that Kubernetes knows, or one with a domain.
func checkQuotaName(at *field.Path, name corev1.ResourceName) errorList {
	if errs := check.QualifiedName(at, string(name)); len(errs) > 0 {
		return errs
	}
	if !strings.Contains(string(name), "/") && !quotaResource(name) {
		return errorList{field.Invalid(at, string(name), "must be a standard resource type or fully qualified")}
	}
	return nil
}

func validateResourceQuota(q *corev1.ResourceQuota) field.ErrorList {
	errs := checkQuotaList(field.NewPath("spec", "hard"), q.Spec.Hard)
	errs = append(errs, checkScopes(q)...)
	return append(errs, checkScopeSelector(q)...)
}

func checkQuotaList(at *field.Path, l corev1.ResourceList) (errs errorList) {
	for name, q := range l {
		at := at.Key(string(name))
		errs = append(errs, checkQuotaName(at, name)...)
		if !strings.Contains(string(name), "/") && !quotaResource(name) {
			errs = append(errs, field.Invalid(at, string(name), "must be a standard resource for quota"))
		}
		errs = append(errs, check.Quantity(at, q)...)
		if slices.Contains(wholeResources, name) && q.MilliValue()%1000 != 0 {
			errs = append(errs, field.Invalid(at, q.String(), "must be an integer"))
		}
	}
	return errs
}

func validateResourceQuotaStatus(q, _ *corev1.ResourceQuota) field.ErrorList {
	at := field.NewPath("status")
	return append(checkQuotaList(at.Child("hard"), q.Status.Hard), checkQuotaList(at.Child("used"), q.Status.Used)...)
}

// podScopes are about pods; the others about what the name says.
var podScopes = []corev1.ResourceQuotaScope{
	corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort,
	corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity, corev1.ResourceQuotaScopeVolumeAttributesClass,
}

// scopeFits tells whether a scope can select the objects that a resource counts.
func scopeFits(scope corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	switch scope {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	}
	switch name {
	case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
		return true
	}
	return false
}

// checkScopeSet checks scopes by themselves, against hard and one another.
func checkScopeSet(at *field.Path, value any, scopes []corev1.ResourceQuotaScope, hard corev1.ResourceList) errorList {
	var errs errorList
	for _, s := range scopes {
		if !slices.Contains(podScopes, s) {
			errs = append(errs, field.Invalid(at, value, "unsupported scope"))
		}
		for name := range hard {
			if slices.Contains(podScopes, s) && quotaResource(name) && !scopeFits(s, name) {
				errs = append(errs, field.Invalid(at, value, "unsupported scope applied to resource"))
			}
		}
	}
	for _, pair := range [][2]corev1.ResourceQuotaScope{
		{corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort},
		{corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating},
	} {
		if slices.Contains(scopes, pair[0]) && slices.Contains(scopes, pair[1]) {
			errs = append(errs, field.Invalid(at, value, "conflicting scopes"))
		}
	}
	return errs
}

func checkScopes(q *corev1.ResourceQuota) errorList {
	if len(q.Spec.Scopes) == 0 {
		return nil
	}
	return checkScopeSet(field.NewPath("spec", "scopes"), q.Spec.Scopes, q.Spec.Scopes, q.Spec.Hard)
}

func checkScopeSelector(q *corev1.ResourceQuota) errorList {
	if q.Spec.ScopeSelector == nil {
		return nil
	}
	at := field.NewPath("spec", "scopeSelector", "matchExpressions")
	var errs errorList
	var scopes []corev1.ResourceQuotaScope
	for _, r := range q.Spec.ScopeSelector.MatchExpressions {
		if !slices.Contains(podScopes, r.ScopeName) {
			errs = append(errs, field.Invalid(at.Child("scopeName"), r.ScopeName, "unsupported scope"))
		}
		for name := range q.Spec.Hard {
			if slices.Contains(podScopes, r.ScopeName) && quotaResource(name) && !scopeFits(r.ScopeName, name) {
				errs = append(errs, field.Invalid(at, q.Spec.ScopeSelector, "unsupported scope applied to resource"))
			}
		}
		switch r.ScopeName {
		case corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopeTerminating,
			corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
			if r.Operator != corev1.ScopeSelectorOpExists {
				errs = append(errs, field.Invalid(at.Child("operator"), r.Operator,
					"must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"))
			}
		}
		switch r.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(r.Values) == 0 {
				errs = append(errs, field.Required(at.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				errs = append(errs, field.Invalid(at.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"))
			}
		default:
			errs = append(errs, field.Invalid(at.Child("operator"), r.Operator, "not a valid selector operator"))
		}
		scopes = append(scopes, r.ScopeName)
	}
	return append(errs, checkScopeSet(at, q.Spec.ScopeSelector, scopes, nil)...)
}

func validateResourceQuotaUpdate(q, old *corev1.ResourceQuota) field.ErrorList {
	errs := validateResourceQuota(q)
	was, now := slices.Clone(old.Spec.Scopes), slices.Clone(q.Spec.Scopes)
	slices.Sort(was)
	slices.Sort(now)
	if !slices.Equal(was, now) {
		errs = append(errs, field.Invalid(field.NewPath("spec", "scopes"), q.Spec.Scopes, "field is immutable"))
	}
	return errs
}
