// Package webhookauthz asks webhooks what users may do, and reads which
// authorizers are asked in which order: the AuthorizationConfiguration of
// apiserver.config.k8s.io/v1.
package webhookauthz

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/webhookcall"
)

// Webhook is an auth.Authorizer that asks a service with SubjectAccessReviews.
type Webhook struct {
	name       string
	cfg        *apiserverv1.WebhookConfiguration
	url        string
	client     *http.Client
	conditions []cel.Program
	answers    *cache.LRUExpireCache // question -> answer
	log        *slog.Logger
}

// maxAnswers bounds what is remembered.
const maxAnswers = 8192

func newWebhook(name string, c *apiserverv1.WebhookConfiguration, log *slog.Logger) (*Webhook, error) {
	w := &Webhook{name: name, cfg: c, answers: cache.NewLRUExpireCache(maxAnswers), log: log}
	rc, err := clientcmd.BuildConfigFromFlags("", *c.ConnectionInfo.KubeConfigFile)
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", name, err)
	}
	rc.Timeout = c.Timeout.Duration
	if w.client, err = rest.HTTPClientFor(rc); err != nil {
		return nil, fmt.Errorf("webhook %s: %w", name, err)
	}
	w.url = rc.Host + rc.APIPath
	w.conditions, err = compile(c.MatchConditions)
	return w, err
}

// Authorize implements auth.Authorizer.
func (w *Webhook) Authorize(ctx context.Context, a *auth.Action) (auth.Decision, string) {
	spec := specOf(a)
	body, err := json.Marshal(&authorizationv1.SubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: authorizationv1.SchemeGroupVersion.String(), Kind: "SubjectAccessReview"}, Spec: spec})
	if err != nil {
		return w.failed(err)
	}
	if concerns, err := w.concerns(&spec); err != nil {
		return w.failed(err)
	} else if !concerns {
		return auth.NoOpinion, ""
	}
	key := string(body)
	if known, ok := w.answers.Get(key); ok {
		return verdict(known.(authorizationv1.SubjectAccessReviewStatus))
	}
	status, err := w.ask(ctx, body)
	if err != nil {
		return w.failed(err)
	}
	ttl, keep := w.cfg.UnauthorizedTTL.Duration, w.cfg.CacheUnauthorizedRequests
	if status.Allowed {
		ttl, keep = w.cfg.AuthorizedTTL.Duration, w.cfg.CacheAuthorizedRequests
	}
	if ttl > 0 && (keep == nil || *keep) {
		w.answers.Add(key, *status, ttl)
	}
	return verdict(*status)
}

func verdict(s authorizationv1.SubjectAccessReviewStatus) (auth.Decision, string) {
	switch {
	case s.Allowed:
		return auth.Permitted, s.Reason
	case s.Denied:
		return auth.Denied, s.Reason
	}
	return auth.NoOpinion, s.Reason
}

// failed is the answer of a webhook that did not answer.
func (w *Webhook) failed(err error) (auth.Decision, string) {
	w.log.Warn("authorization webhook fails", "name", w.name, "error", err)
	if w.cfg.FailurePolicy == apiserverv1.FailurePolicyDeny {
		return auth.Denied, fmt.Sprintf("webhook %s: %v", w.name, err)
	}
	return auth.NoOpinion, ""
}

// concerns asks the match conditions: all must be true.
func (w *Webhook) concerns(spec *authorizationv1.SubjectAccessReviewSpec) (bool, error) {
	if len(w.conditions) == 0 {
		return true, nil
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return false, err
	}
	request := map[string]any{}
	if err := json.Unmarshal(b, &request); err != nil {
		return false, err
	}
	var failed error
	for _, p := range w.conditions {
		v, _, err := p.Eval(map[string]any{"request": request})
		if err != nil {
			failed = err
		} else if v != types.True {
			return false, nil
		}
	}
	return failed == nil, failed
}

func (w *Webhook) ask(ctx context.Context, question json.RawMessage) (*authorizationv1.SubjectAccessReviewStatus, error) {
	out := &authorizationv1.SubjectAccessReview{}
	if err := webhookcall.Ask(ctx, w.client, w.url, question, out); err != nil {
		return nil, err
	}
	if out.Status.Allowed && out.Status.Denied {
		return nil, fmt.Errorf("it both allows and denies")
	}
	return &out.Status, nil
}

func specOf(a *auth.Action) authorizationv1.SubjectAccessReviewSpec {
	s := authorizationv1.SubjectAccessReviewSpec{User: a.User.Username, Groups: a.User.Groups, UID: a.User.UID}
	for k, v := range a.User.Extra {
		if s.Extra == nil {
			s.Extra = map[string]authorizationv1.ExtraValue{}
		}
		s.Extra[k] = authorizationv1.ExtraValue(v)
	}
	if !a.IsResource() {
		s.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: a.Path, Verb: a.Verb}
		return s
	}
	s.ResourceAttributes = &authorizationv1.ResourceAttributes{Namespace: a.Namespace, Verb: a.Verb, Group: a.Group, Version: a.Version,
		Resource: a.Resource, Subresource: a.Subresource, Name: a.Name}
	return s
}

// Defaults of kube-apiserver.
const (
	defaultAllowedFor = 5 * time.Minute
	defaultRefusedFor = 30 * time.Second
)
