// Package webhookauthn asks a webhook whose bearer tokens are, with TokenReviews of
// authentication.k8s.io/v1.
//
// See https://kubernetes.io/docs/reference/access-authn-authz/authentication/#webhook-token-authentication
package webhookauthn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/webhookcall"
)

// DefaultTTL is how long an answer is remembered unless the configuration says
// otherwise, as in Kubernetes.
const DefaultTTL = 2 * time.Minute

const (
	timeout    = 30 * time.Second // of a question
	maxAnswers = 4096             // that are remembered
)

// Webhook is an auth.Reviewer.
type Webhook struct {
	url     string
	client  *http.Client
	own     []string // the API server's audiences
	ttl     time.Duration
	answers *cache.LRUExpireCache // question -> authenticationv1.TokenReviewStatus
}

// Load returns the webhook that a kubeconfig file names as its current cluster,
// with the user of the current context as the API server's credentials there. own
// are the API server's audiences. Answers, good and bad, are remembered for ttl; 0:
// not at all.
func Load(kubeconfig string, own []string, ttl time.Duration) (*Webhook, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("token webhook %s: %w", kubeconfig, err)
	}
	rc.Timeout = timeout
	w := &Webhook{url: rc.Host + rc.APIPath, own: own, ttl: ttl, answers: cache.NewLRUExpireCache(maxAnswers)}
	if w.client, err = rest.HTTPClientFor(rc); err != nil {
		return nil, fmt.Errorf("token webhook %s: %w", kubeconfig, err)
	}
	return w, nil
}

// Review implements auth.Reviewer.
func (w *Webhook) Review(ctx context.Context, token string, audiences []string) (*authenticationv1.UserInfo, []string, error) {
	asked := audiences
	if len(asked) == 0 {
		asked = w.own
	}
	key := sha256.Sum256([]byte(token + "\x00" + strings.Join(asked, "\x00")))
	status, known := authenticationv1.TokenReviewStatus{}, false
	if v, ok := w.answers.Get(key); ok {
		status, known = v.(authenticationv1.TokenReviewStatus)
	}
	if !known {
		var err error
		if status, err = w.ask(ctx, token, asked); err != nil {
			return nil, nil, fmt.Errorf("token webhook: %w", err)
		}
		if w.ttl > 0 {
			w.answers.Add(key, status, w.ttl)
		}
	}
	switch {
	case !status.Authenticated && status.Error != "":
		return nil, nil, fmt.Errorf("token webhook: %s", status.Error)
	case !status.Authenticated:
		return nil, nil, auth.ErrOtherToken
	}
	good := status.Audiences
	if len(good) == 0 {
		good = w.own // it knows nothing of audiences: its tokens are for the API server
	}
	var shared []string
	for _, a := range asked {
		if slices.Contains(good, a) {
			shared = append(shared, a)
		}
	}
	if len(shared) == 0 {
		return nil, nil, errors.New("token webhook: the token is for other audiences")
	}
	user := status.User.DeepCopy()
	if !slices.Contains(user.Groups, auth.GroupAuthenticated) {
		user.Groups = append(user.Groups, auth.GroupAuthenticated)
	}
	return user, shared, nil
}

func (w *Webhook) ask(ctx context.Context, token string, audiences []string) (status authenticationv1.TokenReviewStatus, err error) {
	var out authenticationv1.TokenReview
	err = webhookcall.Ask(ctx, w.client, w.url, &authenticationv1.TokenReview{
		TypeMeta: metav1.TypeMeta{APIVersion: authenticationv1.SchemeGroupVersion.String(), Kind: "TokenReview"},
		Spec:     authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}, &out)
	if err != nil {
		return status, err
	}
	if out.Kind != "TokenReview" || out.APIVersion != authenticationv1.SchemeGroupVersion.String() {
		return status, fmt.Errorf("%s answered a %s of %s: want a TokenReview of %s", w.url, out.Kind, out.APIVersion, authenticationv1.SchemeGroupVersion)
	}
	return out.Status, nil
}
