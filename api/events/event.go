// Package events declares the Event of the group events.k8s.io: a view on the
// core one, which is what is stored. The two have other names for the same
// fields.
package events

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/core"
	"knarr.dev/knarr/api/kind"
)

// Event declares events.k8s.io/v1 Event.
func Event() *kind.Kind {
	return &kind.Kind{
		Group: "events.k8s.io", Version: "v1", Kind: "Event", Resource: "events", ShortNames: []string{"ev"}, Namespaced: true,
		ValidName:    check.PathSegment,
		NoGeneration: true, AllowCreateOnUpdate: true,
		ValidateViaView: kind.CheckChange(validateUpdate),
		Fields: func(o kind.Object) fields.Set {
			set := fields.Set{}
			for name, v := range core.Event().Fields(o) {
				set[renamed.Replace(name)] = v
			}
			return set
		},
		Hub: core.Event().GVK(), ToHub: toHub, FromHub: fromHub,
	}
}

// validateUpdate lets nothing but the series of an event change, through this
// version. Errors have its names.
func validateUpdate(e, old *corev1.Event) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name     string
		now, was any
	}{
		{"involvedObject", e.InvolvedObject, old.InvolvedObject}, {"reason", e.Reason, old.Reason}, {"message", e.Message, old.Message},
		{"source", e.Source, old.Source}, {"firstTimestamp", e.FirstTimestamp, old.FirstTimestamp}, {"lastTimestamp", e.LastTimestamp, old.LastTimestamp},
		{"count", e.Count, old.Count}, {"type", e.Type, old.Type}, {"eventTime", e.EventTime, old.EventTime}, {"action", e.Action, old.Action},
		{"related", e.Related, old.Related}, {"reportingController", e.ReportingController, old.ReportingController},
		{"reportingInstance", e.ReportingInstance, old.ReportingInstance},
	} {
		errs = append(errs, check.Immutable(field.NewPath(f.name), f.now, f.was)...)
	}
	if s := e.Series; s != nil {
		at := field.NewPath("series")
		const least = 2
		if s.Count < least {
			errs = append(errs, field.Invalid(at.Child("count"), "", fmt.Sprintf("should be at least %d", least)))
		}
		if s.LastObservedTime.IsZero() {
			errs = append(errs, field.Required(at.Child("lastObservedTime"), ""))
		}
	}
	return errs
}

// renamed has the view's names for the core event's fields.
var renamed = strings.NewReplacer("involvedObject.", "regarding.", "reportingComponent", "reportingController")

func toHub(o kind.Object) (kind.Object, error) {
	e, ok := o.(*eventsv1.Event)
	if !ok {
		return nil, fmt.Errorf("events.k8s.io/v1 Event: got %T", o)
	}
	e = e.DeepCopy()
	out := &corev1.Event{
		ObjectMeta: e.ObjectMeta, EventTime: e.EventTime, ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
		Action: e.Action, Reason: e.Reason, InvolvedObject: e.Regarding, Related: e.Related, Message: e.Note, Type: e.Type,
		Source: e.DeprecatedSource, FirstTimestamp: e.DeprecatedFirstTimestamp, LastTimestamp: e.DeprecatedLastTimestamp, Count: e.DeprecatedCount,
	}
	if e.Series != nil {
		out.Series = &corev1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return out, nil
}

func fromHub(o kind.Object) (kind.Object, error) {
	e, ok := o.(*corev1.Event)
	if !ok {
		return nil, fmt.Errorf("v1 Event: got %T", o)
	}
	e = e.DeepCopy()
	out := &eventsv1.Event{
		ObjectMeta: e.ObjectMeta, EventTime: e.EventTime, ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
		Action: e.Action, Reason: e.Reason, Regarding: e.InvolvedObject, Related: e.Related, Note: e.Message, Type: e.Type,
		DeprecatedSource: e.Source, DeprecatedFirstTimestamp: e.FirstTimestamp, DeprecatedLastTimestamp: e.LastTimestamp, DeprecatedCount: e.Count,
	}
	out.SetGroupVersionKind(eventsv1.SchemeGroupVersion.WithKind("Event"))
	if e.Series != nil {
		out.Series = &eventsv1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return out, nil
}
