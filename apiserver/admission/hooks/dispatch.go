package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"knarr.dev/knarr/apiserver/admission/match"
	"knarr.dev/knarr/apiserver/registry"
)

const mutatingNote = "MutatingAdmissionWebhook"

// mutate asks the mutating webhooks one after the other. In the second round only
// those are asked that want it and whose object has changed since.
func (s *step) mutate(ctx context.Context, a *registry.Attributes) error {
	hits := s.index.Find(a)
	if hits == nil {
		return nil
	}
	round := match.RoundOf(a, mutatingNote)
	defer round.End(a)
	for _, hit := range hits.List {
		h := hit.Entry
		if round.Skips(a, h.id) {
			continue
		}
		ok, err := s.wanted(ctx, a, hits, hit)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		changed, err := s.change(ctx, a, hit)
		if err != nil {
			return err
		}
		if changed {
			round.Changed()
		}
		if h.reinvoke {
			round.Willing(h.id)
		}
	}
	return nil
}

// change asks one webhook and applies its patch.
func (s *step) change(ctx context.Context, a *registry.Attributes, hit match.Hit[*hook]) (bool, error) {
	h := hit.Entry
	q, err := request(ctx, a, hit.Resource)
	if err != nil {
		return false, s.failed(h, err)
	}
	r, err := s.ask(ctx, h, q, true)
	if err != nil {
		if ctx.Err() != nil {
			return false, apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
		}
		return false, s.failed(h, err)
	}
	warnAll(a, r)
	if !r.Allowed {
		return false, denied(h, r.Result)
	}
	if len(r.Patch) == 0 {
		return false, nil
	}
	return apply(ctx, a, hit, q.Object.Raw, r.Patch)
}

// apply replaces the request's object by the patched one, if that differs.
func apply(ctx context.Context, a *registry.Attributes, hit match.Hit[*hook], before, patch []byte) (bool, error) {
	h := hit.Entry
	p, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	if len(p) == 0 {
		return false, nil
	}
	if before == nil {
		return false, apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", h.name))
	}
	after, err := registry.ApplyJSON(p, before)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	if bytes.Equal(before, after) {
		return false, nil
	}
	if !a.BodyKind.Empty() {
		body := reflect.New(reflect.TypeOf(a.Body).Elem()).Interface().(runtime.Object)
		if err := json.Unmarshal(after, body); err != nil {
			return false, apierrors.NewInternalError(err)
		}
		if equality.Semantic.DeepEqual(body, a.Body) {
			return false, nil
		}
		a.ReplaceBody(body)
		return true, nil
	}
	shown, err := hit.Resource.Read(after)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	obj, err := a.Resource.Show(ctx, hit.Resource, shown)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	if equality.Semantic.DeepEqual(obj, a.Object) {
		return false, nil
	}
	a.Replace(obj)
	return true, nil
}

// validate asks all validating webhooks at once; the first refusal, by the order
// of the configurations, is the answer.
func (s *step) validate(ctx context.Context, a *registry.Attributes) error {
	hits := s.index.Find(a)
	if hits == nil {
		return nil
	}
	var todo []match.Hit[*hook]
	for _, hit := range hits.List {
		ok, err := s.wanted(ctx, a, hits, hit)
		if err != nil {
			return err
		}
		if ok {
			todo = append(todo, hit)
		}
	}
	answers, errs := make([]*admissionv1.AdmissionResponse, len(todo)), make([]error, len(todo))
	var wg sync.WaitGroup
	for i, hit := range todo {
		wg.Go(func() { answers[i], errs[i] = s.check(ctx, a, hit) })
	}
	wg.Wait()
	for _, r := range answers {
		if r != nil {
			warnAll(a, r)
		}
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *step) check(ctx context.Context, a *registry.Attributes, hit match.Hit[*hook]) (*admissionv1.AdmissionResponse, error) {
	h := hit.Entry
	q, err := request(ctx, a, hit.Resource)
	if err != nil {
		return nil, s.failed(h, err)
	}
	r, err := s.ask(ctx, h, q, false)
	if err != nil {
		if ctx.Err() != nil {
			return nil, apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
		}
		return nil, s.failed(h, err)
	}
	if !r.Allowed {
		return r, denied(h, r.Result)
	}
	return r, nil
}

func warnAll(a *registry.Attributes, r *admissionv1.AdmissionResponse) {
	for _, text := range r.Warnings {
		a.Warn(text)
	}
}
