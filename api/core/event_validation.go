package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// Greatest lengths of an event's texts, in bytes.
const (
	maxEventText = 128
	maxEventNote = 1024
)

// validateEvent checks an event. Only those of the newer form, which have an
// eventTime, are looked at closely: the older one promises nothing.
func validateEvent(e *corev1.Event) field.ErrorList {
	errs := checkEventNamespace(e)
	if e.EventTime.IsZero() {
		return errs
	}
	at := field.NewPath("reportingComponent")
	errs = append(errs, check.Required(at, e.ReportingController)...)
	errs = append(errs, check.QualifiedName(at, e.ReportingController)...)
	for _, f := range []struct{ name, value string }{{"reportingInstance", e.ReportingInstance}, {"action", e.Action}, {"reason", e.Reason}} {
		at := field.NewPath(f.name)
		errs = append(errs, check.Required(at, f.value)...)
		if len(f.value) > maxEventText {
			errs = append(errs, field.Invalid(at, "", "can have at most 128 characters"))
		}
	}
	if len(e.Message) > maxEventNote {
		errs = append(errs, field.Invalid(field.NewPath("message"), "", "can have at most 1024 characters"))
	}
	return errs
}

func checkEventNamespace(e *corev1.Event) errorList {
	at, ns := field.NewPath("involvedObject", "namespace"), e.InvolvedObject.Namespace
	switch {
	case ns != "" && ns != e.Namespace,
		ns == "" && e.Namespace != "" && e.Namespace != corev1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem:
		return errorList{field.Invalid(at, ns, "does not match event.namespace")}
	}
	return nil
}
