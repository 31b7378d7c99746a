package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/utils/lru"

	"knarr.dev/knarr/apiserver/registry"
)

// EventLimit is one limit of how many events may be written, as in the
// EventRateLimit configuration of Kubernetes.
type EventLimit struct {
	// Type is Server, Namespace, User or SourceAndObject: what has a limit of its own.
	Type string `json:"type"`
	// QPS events a second are let through on average, Burst at once.
	QPS   int32 `json:"qps"`
	Burst int32 `json:"burst"`
	// CacheSize is how many namespaces, users or objects are remembered; 0: 4096.
	CacheSize int32 `json:"cacheSize,omitempty"`
}

const defaultEventCache = 4096

// Validate finds types that do not exist and limits below one.
func (l *EventLimit) Validate() error {
	if eventKey(l.Type, nil, nil) == "?" {
		return fmt.Errorf("type %q: must be Server, Namespace, User or SourceAndObject", l.Type)
	}
	if l.QPS < 1 || l.Burst < 1 {
		return fmt.Errorf("limit of type %s: qps and burst must be at least 1", l.Type)
	}
	return nil
}

// eventRate refuses events beyond the limits; it is only in the list if there are
// some.
func eventRate(d Deps) registry.Admission {
	type limiter struct {
		EventLimit
		known *lru.Cache
	}
	var limiters []limiter
	for _, l := range d.EventLimits {
		size := int(l.CacheSize)
		if size == 0 {
			size = defaultEventCache
		}
		limiters = append(limiters, limiter{l, lru.New(size)})
	}
	return registry.Admission{
		Name: "EventRateLimit",
		Validate: func(_ context.Context, a *registry.Attributes) error {
			e, ok := a.Object.(*corev1.Event)
			if !ok || a.Operation == registry.Delete || a.DryRun {
				return nil
			}
			for _, l := range limiters {
				key := eventKey(l.Type, a, e)
				b, ok := l.known.Get(key)
				if !ok {
					b = flowcontrol.NewTokenBucketRateLimiter(float32(l.QPS), int(l.Burst))
					l.known.Add(key, b)
				}
				if !b.(flowcontrol.RateLimiter).TryAccept() {
					return apierrors.NewTooManyRequestsError(fmt.Sprintf("limit reached on type %s for key %v", l.Type, key))
				}
			}
			return nil
		},
	}
}

// eventKey is what has the limit; "?" if the type does not exist.
func eventKey(kind string, a *registry.Attributes, e *corev1.Event) string {
	switch kind {
	case "Server":
		return ""
	case "Namespace":
		if a != nil {
			return a.Namespace
		}
		return ""
	case "User":
		if a != nil && a.User != nil {
			return a.User.Username
		}
		return ""
	case "SourceAndObject":
		if e == nil {
			return ""
		}
		o := &e.InvolvedObject
		return fmt.Sprint(e.Source.Component, e.Source.Host, o.Kind, o.Namespace, o.Name, o.UID, o.APIVersion)
	}
	return "?"
}
