// Package apiregistration declares which server serves a group and version: this
// one, or an extension server behind a Service.
package apiregistration

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiregv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// Limits of the priorities, and the port of a Service that names none.
const (
	maxGroupPriority   = 20000
	maxVersionPriority = 1000
	defaultPort        = 443
)

// APIService declares apiregistration.k8s.io/v1 APIService.
func APIService() *kind.Kind {
	gv := apiregv1.SchemeGroupVersion
	return &kind.Kind{
		Group: gv.Group, Version: gv.Version, Kind: "APIService", Resource: "apiservices", Categories: []string{"api-extensions"}, HasStatus: true, NoGeneration: true,
		Storage: gv.Group + "/apiservices",
		New: func() kind.Object {
			// With its type: the field manager knows it by nothing else.
			return &apiregv1.APIService{TypeMeta: metav1.TypeMeta{APIVersion: gv.String(), Kind: "APIService"}}
		},
		NewList: func() runtime.Object { return &apiregv1.APIServiceList{} },
		Managed: func() (kind.Managed, error) {
			s := runtime.NewScheme()
			if err := apiregv1.AddToScheme(s); err != nil {
				return kind.Managed{}, fmt.Errorf("types of APIService: %w", err)
			}
			return kind.Managed{Types: managedfields.NewDeducedTypeConverter(), Convertor: s, Creater: s}, nil
		},
		Default: kind.Each(func(a *apiregv1.APIService) {
			if s := a.Spec.Service; s != nil && s.Port == nil {
				port := int32(defaultPort)
				s.Port = &port
			}
		}),
		PrepareCreate:  kind.Each(prepareCreate),
		ValidName:      check.PathSegment,
		Validate:       kind.Check(validate),
		ValidateStatus: kind.CheckChange(validateStatus),
		Columns: columns.Named(
			columns.Text("Service", "The Service that serves it; Local: this server."),
			columns.Text("Available", "Whether requests are served."),
			columns.Age(),
		),
		Row: kind.RowOf(func(a *apiregv1.APIService, now time.Time) []any {
			return []any{a.Name, servedBy(a), available(a), columns.Created(a, now)}
		}),
	}
}

// prepareCreate says of what this server serves itself that it is there.
func prepareCreate(a *apiregv1.APIService) {
	a.Status = apiregv1.APIServiceStatus{}
	if a.Spec.Service == nil {
		a.Status.Conditions = []apiregv1.APIServiceCondition{{Type: apiregv1.Available, Status: apiregv1.ConditionTrue,
			LastTransitionTime: a.CreationTimestamp, Reason: "Local", Message: "Local APIServices are always available"}}
	}
}

func servedBy(a *apiregv1.APIService) string {
	if a.Spec.Service == nil {
		return "Local"
	}
	return a.Spec.Service.Namespace + "/" + a.Spec.Service.Name
}

func available(a *apiregv1.APIService) string {
	for _, c := range a.Status.Conditions {
		if c.Type != apiregv1.Available {
			continue
		}
		if c.Status == apiregv1.ConditionTrue {
			return string(c.Status)
		}
		return fmt.Sprintf("%s (%s)", c.Status, c.Reason)
	}
	return string(apiregv1.ConditionUnknown)
}

func validate(a *apiregv1.APIService) (errs check.Errors) {
	at, s := field.NewPath("spec"), &a.Spec
	if want := s.Version + "." + s.Group; a.Name != want {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), a.Name, fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", want)))
	}
	if s.Group != "" {
		errs = append(errs, check.DNSSubdomain(at.Child("group"), s.Group)...)
	} else if s.Version != "v1" {
		errs = append(errs, field.Required(at.Child("group"), "only v1 may have an empty group and it better be legacy kube"))
	}
	errs = append(errs, check.Each(at.Child("version"), s.Version, validation.IsDNS1035Label(s.Version))...)
	if p := s.GroupPriorityMinimum; p <= 0 || p > maxGroupPriority {
		errs = append(errs, field.Invalid(at.Child("groupPriorityMinimum"), p, "must be positive and less than 20000"))
	}
	if p := s.VersionPriority; p <= 0 || p > maxVersionPriority {
		errs = append(errs, field.Invalid(at.Child("versionPriority"), p, "must be positive and less than 1000"))
	}
	skip := at.Child("insecureSkipTLSVerify")
	if s.Service == nil {
		if len(s.CABundle) > 0 {
			errs = append(errs, field.Invalid(at.Child("caBundle"), fmt.Sprintf("%d bytes", len(s.CABundle)), "local APIServices may not have a caBundle"))
		}
		if s.InsecureSkipTLSVerify {
			errs = append(errs, field.Invalid(skip, true, "local APIServices may not have insecureSkipTLSVerify"))
		}
		return errs
	}
	svc := at.Child("service")
	errs = append(errs, check.Required(svc.Child("namespace"), s.Service.Namespace)...)
	errs = append(errs, check.Required(svc.Child("name"), s.Service.Name)...)
	if p := s.Service.Port; p != nil {
		for _, err := range check.Port(svc.Child("port"), *p) {
			err.Detail = "port is not valid: " + err.Detail
			errs = append(errs, err)
		}
	}
	if s.InsecureSkipTLSVerify && len(s.CABundle) > 0 {
		errs = append(errs, field.Invalid(skip, true, "may not be true if caBundle is present"))
	}
	return errs
}

func validateStatus(a, _ *apiregv1.APIService) (errs check.Errors) {
	seen := map[apiregv1.APIServiceConditionType]bool{}
	for i, c := range a.Status.Conditions {
		if seen[c.Type] {
			errs = append(errs, field.Duplicate(field.NewPath("status", "conditions").Index(i).Child("type"), c.Type))
		}
		seen[c.Type] = true
	}
	return errs
}
