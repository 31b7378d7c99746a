package client

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Recorder reports what happened to an object as a Kubernetes Event.
type Recorder interface {
	// Event queues an event of eventType (corev1.EventTypeNormal or
	// EventTypeWarning) about obj; it never blocks and never fails.
	Event(obj Object, eventType, reason, message string)
}

// Events is the Recorder that writes to the API: a repeated event raises the
// count of the first one instead of making another.
type Events struct {
	client    Interface
	component string
	host      string
	now       func() time.Time
	kind      func(Object) schema.GroupVersionKind
	log       *slog.Logger
	queue     chan *corev1.Event
	seen      map[eventKey]*seenEvent
	order     []eventKey
}

type eventKey struct {
	uid                             types.UID
	namespace, name, kind, field    string
	eventType, reason, message, src string
}

type seenEvent struct {
	name  string
	count int32
}

// Events that are remembered for counting, and those that may wait to be
// written; beyond the latter they are dropped with a log line, as in Kubernetes.
const (
	eventMemory = 1024
	eventQueue  = 1024
)

// NewEvents returns a recorder whose events come from the named component on
// the named host. kind tells an object's kind, for objects without TypeMeta.
func NewEvents(c Interface, component, host string, kind func(Object) schema.GroupVersionKind, now func() time.Time, log *slog.Logger) *Events {
	return &Events{
		client: c, component: component, host: host, now: now, kind: kind, log: log,
		queue: make(chan *corev1.Event, eventQueue),
		seen:  map[eventKey]*seenEvent{},
	}
}

// Event implements Recorder.
func (e *Events) Event(obj Object, eventType, reason, message string) {
	gvk := e.kind(obj)
	e.send(corev1.ObjectReference{
		Kind: gvk.Kind, APIVersion: gvk.GroupVersion().String(),
		Namespace: obj.GetNamespace(), Name: obj.GetName(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(),
	}, eventType, reason, message)
}

func (e *Events) send(ref corev1.ObjectReference, eventType, reason, message string) {
	namespace := ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	at := e.now()
	ev := &corev1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x", ref.Name, at.UnixNano())},
		InvolvedObject:      ref,
		Type:                eventType,
		Reason:              reason,
		Message:             message,
		Source:              corev1.EventSource{Component: e.component, Host: e.host},
		FirstTimestamp:      metav1.NewTime(at),
		LastTimestamp:       metav1.NewTime(at),
		Count:               1,
		ReportingController: e.component,
		ReportingInstance:   e.host,
	}
	select {
	case e.queue <- ev:
	default:
		e.log.Warn("event dropped: the queue is full", "object", ref.Kind+" "+ref.Namespace+"/"+ref.Name, "reason", reason)
	}
}

// Run writes events until ctx ends.
func (e *Events) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-e.queue:
			if err := e.write(ctx, ev); err != nil && ctx.Err() == nil {
				e.log.Debug("event not written", "event", ev.Name, "error", err)
			}
		}
	}
}

func (e *Events) write(ctx context.Context, ev *corev1.Event) error {
	o := ev.InvolvedObject
	k := eventKey{o.UID, ev.Namespace, o.Name, o.Kind, o.FieldPath, ev.Type, ev.Reason, ev.Message, ev.Source.Component}
	if s := e.seen[k]; s != nil {
		patch, err := json.Marshal(map[string]any{"count": s.count + 1, "lastTimestamp": ev.LastTimestamp})
		if err != nil {
			return err
		}
		_, err = e.client.Patch(ctx, Key{Resource: EventObjects, Namespace: ev.Namespace, Name: s.name}, Patch{Type: types.MergePatchType, Data: patch})
		if err == nil {
			s.count++
			return nil
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
		s.name, s.count = ev.Name, 1
	} else {
		e.remember(k, &seenEvent{name: ev.Name, count: 1})
	}
	_, err := e.client.Create(ctx, Key{Resource: EventObjects, Namespace: ev.Namespace, Name: ev.Name}, ev)
	return err
}

func (e *Events) remember(k eventKey, s *seenEvent) {
	if len(e.order) >= eventMemory {
		delete(e.seen, e.order[0])
		e.order = e.order[1:]
	}
	e.seen[k] = s
	e.order = append(e.order, k)
}
