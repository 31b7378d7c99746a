// Package hooks asks the admission webhooks that users configure about writes:
// the mutating ones in order, then the validating ones at once.
//
//	write -> index (which webhooks?) -> labels -> match conditions ->
//	AdmissionReview over HTTPS -> verdict, patch, warnings
//
// See https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
package hooks

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	celgo "github.com/google/cel-go/cel"
	admv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"knarr.dev/knarr/api/expression"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/admission/match"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/webhook"
)

// Config is what the webhooks' steps need. The functions must work by the time
// of the first write.
type Config struct {
	// Each visits the objects of a resource in the caches, by name.
	Each func(gvr schema.GroupVersionResource, namespace string, visit func(kind.Object) bool)
	// Labels are those of a namespace.
	Labels match.Labels
	// Stamp rises with every change of a resource's objects, or of what is served.
	Stamp func(schema.GroupVersionResource) int64
	// Versions lists a resource's versions, itself first.
	Versions func(*registry.Resource) []*registry.Resource
	Caller   *webhook.Caller
	// Authorize answers match conditions that ask what the user may do.
	Authorize match.Authorizer
	Log       *slog.Logger
}

var (
	mutatingGVR   = admv1.SchemeGroupVersion.WithResource("mutatingwebhookconfigurations")
	validatingGVR = admv1.SchemeGroupVersion.WithResource("validatingwebhookconfigurations")
)

// hook is a webhook of one revision of its configuration.
type hook struct {
	config, name string
	id           string // of the webhook in all configurations
	revision     string // of the configuration
	constraints  *match.Constraints
	broken       error // of the constraints

	target     webhook.Target
	ignore     bool // failures let the request pass
	timeout    time.Duration
	sideEffect *admv1.SideEffectClass
	version    string // of AdmissionReview
	reinvoke   bool
	conditions []admv1.MatchCondition

	once     sync.Once
	compiled plugincel.ConditionEvaluator
}

// Match implements match.Entry.
func (h *hook) Match() *match.Constraints { return h.constraints }

// spec is what both sorts of webhooks have.
type spec struct {
	*admv1.ValidatingWebhook
	reinvoke bool
}

func newHook(config kind.Object, i int, s spec) *hook {
	h := &hook{
		config: config.GetName(), name: s.Name, id: fmt.Sprintf("%s/%s/%d", config.GetName(), s.Name, i), revision: config.GetResourceVersion(),
		target: webhook.FromConfig(&s.ClientConfig), ignore: s.FailurePolicy != nil && *s.FailurePolicy == admv1.Ignore,
		timeout: 10 * time.Second, sideEffect: s.SideEffects, reinvoke: s.reinvoke, conditions: s.MatchConditions,
	}
	if s.TimeoutSeconds != nil {
		h.timeout = time.Duration(*s.TimeoutSeconds) * time.Second
	}
	for _, v := range s.AdmissionReviewVersions {
		if v == "v1" || v == "v1beta1" {
			h.version = v
			break
		}
	}
	h.constraints, h.broken = match.New(match.Unnamed(s.Rules), nil, s.MatchPolicy, s.NamespaceSelector, s.ObjectSelector)
	if h.broken != nil || len(s.Rules) == 0 {
		h.constraints = match.Nothing()
	}
	return h
}

// step is one of the two steps.
type step struct {
	Config
	index match.Index[*hook]
}

func newStep(c Config, gvr schema.GroupVersionResource, hooks func(kind.Object) []spec) *step {
	s := &step{Config: c}
	s.index = match.Index[*hook]{
		Stamp: func() int64 { return c.Stamp(gvr) }, Versions: c.Versions,
		Load: func(previous []*hook) []*hook {
			known := map[string]*hook{}
			for _, h := range previous {
				known[h.id] = h
			}
			var out []*hook
			c.Each(gvr, "", func(o kind.Object) bool {
				for i, sp := range hooks(o) {
					h := newHook(o, i, sp)
					if k := known[h.id]; k != nil && k.revision == h.revision {
						h = k
					}
					out = append(out, h)
				}
				return true
			})
			return out
		},
	}
	return s
}

// Mutating is the step MutatingAdmissionWebhook.
func Mutating(c Config) registry.Admission {
	s := newStep(c, mutatingGVR, func(o kind.Object) []spec {
		list := o.(*admv1.MutatingWebhookConfiguration).Webhooks
		out := make([]spec, len(list))
		for i := range list {
			w := &list[i]
			out[i] = spec{&admv1.ValidatingWebhook{
				Name: w.Name, ClientConfig: w.ClientConfig, Rules: w.Rules, FailurePolicy: w.FailurePolicy, MatchPolicy: w.MatchPolicy,
				NamespaceSelector: w.NamespaceSelector, ObjectSelector: w.ObjectSelector, SideEffects: w.SideEffects,
				TimeoutSeconds: w.TimeoutSeconds, AdmissionReviewVersions: w.AdmissionReviewVersions, MatchConditions: w.MatchConditions,
			}, w.ReinvocationPolicy != nil && *w.ReinvocationPolicy == admv1.IfNeededReinvocationPolicy}
		}
		return out
	})
	return registry.Admission{Name: "MutatingAdmissionWebhook", Mutate: s.mutate}
}

// Validating is the step ValidatingAdmissionWebhook.
func Validating(c Config) registry.Admission {
	s := newStep(c, validatingGVR, func(o kind.Object) []spec {
		list := o.(*admv1.ValidatingWebhookConfiguration).Webhooks
		out := make([]spec, len(list))
		for i := range list {
			out[i] = spec{ValidatingWebhook: &list[i]}
		}
		return out
	})
	return registry.Admission{Name: "ValidatingAdmissionWebhook", Validate: s.validate}
}

// conditionsOf compiles a webhook's match conditions, once.
func (h *hook) conditionsOf() plugincel.ConditionEvaluator {
	h.once.Do(func() {
		var list []plugincel.ExpressionAccessor
		for _, c := range h.conditions {
			list = append(list, &expression.Expression{Name: c.Name, Text: c.Expression, Returns: []*celgo.Type{celgo.BoolType}})
		}
		h.compiled = expression.Conditions().CompileCondition(list, expression.Options(false, true), environment.StoredExpressions)
	})
	return h.compiled
}

// wanted tells whether a webhook is to be asked about this very request.
func (s *step) wanted(ctx context.Context, a *registry.Attributes, hits *match.Hits[*hook], hit match.Hit[*hook]) (bool, error) {
	h := hit.Entry
	if ok, err := h.constraints.Object(a, hits.Versions, s.Labels); !ok || err != nil {
		return false, err
	}
	if len(h.conditions) > 0 {
		v, err := match.Versioned(ctx, a, hit.Resource)
		if err != nil {
			return false, apierrors.NewInternalError(err)
		}
		ok, err := match.Conditions(ctx, h.conditionsOf(), v, nil, s.Authorize)
		switch {
		case err != nil && h.ignore:
			s.Log.Warn("match conditions of a webhook cannot be evaluated: it is not asked", "webhook", h.name, "configuration", h.config, "error", err)
			return false, nil
		case err != nil:
			return false, apierrors.NewForbidden(a.Requested.GroupResource(), a.Name, err)
		case !ok:
			return false, nil
		}
	}
	if a.DryRun && (h.sideEffect == nil || *h.sideEffect != admv1.SideEffectClassNone && *h.sideEffect != admv1.SideEffectClassNoneOnDryRun) {
		return false, apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q does not support dry run", h.name))
	}
	return true, nil
}

// failed is the verdict on a request when a webhook could not be asked; nil lets
// it pass.
func (s *step) failed(h *hook, err error) error {
	err = fmt.Errorf("failed calling webhook %q: %w", h.name, err)
	if h.ignore {
		s.Log.Warn("webhook failed; its failure policy lets the request pass", "configuration", h.config, "error", err)
		return nil
	}
	return apierrors.NewInternalError(err)
}

// denied is the answer to a request that a webhook refuses.
func denied(h *hook, result *metav1.Status) error {
	st := metav1.Status{}
	if result != nil {
		st = *result
	}
	by := fmt.Sprintf("admission webhook %q denied the request", h.name)
	switch {
	case st.Message != "":
		st.Message = by + ": " + st.Message
	case st.Reason != "":
		st.Message = by + ": " + string(st.Reason)
	default:
		st.Message = by + " without explanation"
	}
	if st.Code < 400 {
		st.Code = 400
	}
	if st.Status == "" || st.Status == metav1.StatusSuccess {
		st.Status = metav1.StatusFailure
	}
	return &apierrors.StatusError{ErrStatus: st}
}
