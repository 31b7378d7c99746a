package volumes

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
)

// token is a service account token with the time at which it must be replaced.
type token struct {
	value   string
	refresh time.Time
}

// tokens requests service account tokens bound to pods and keeps them until 80 %
// of their life has passed, or a day for those that live longer.
type tokens struct {
	client client.Interface
	clock  clock.PassiveClock

	mu   sync.Mutex
	have map[string]token
}

func newTokens(c client.Interface, clk clock.PassiveClock) *tokens {
	return &tokens{client: c, clock: clk, have: map[string]token{}}
}

func (t *tokens) get(ctx context.Context, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) (token, error) {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	seconds := int64(3600)
	if p.ExpirationSeconds != nil {
		seconds = *p.ExpirationSeconds
	}
	key := fmt.Sprintf("%s/%s/%s/%d", pod.UID, account, p.Audience, seconds)
	now := t.clock.Now()
	t.mu.Lock()
	have, ok := t.have[key]
	t.mu.Unlock()
	if ok && now.Before(have.refresh) {
		return have, nil
	}
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if p.Audience != "" {
		req.Spec.Audiences = []string{p.Audience}
	}
	obj, err := t.client.Create(ctx, client.Key{Resource: client.ServiceAccounts, Namespace: pod.Namespace, Name: account}.Sub("token"), req)
	if err != nil {
		return token{}, fmt.Errorf("failed to fetch token: %w", err)
	}
	got, ok := obj.(*authenticationv1.TokenRequest)
	if !ok {
		return token{}, fmt.Errorf("failed to fetch token: server answered a %T", obj)
	}
	life := got.Status.ExpirationTimestamp.Sub(now)
	if life <= 0 {
		life = time.Duration(seconds) * time.Second
	}
	next := token{value: got.Status.Token, refresh: now.Add(min(life*8/10, 24*time.Hour))}
	t.mu.Lock()
	t.have[key] = next
	t.mu.Unlock()
	return next, nil
}

func (t *tokens) forget(uid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.have {
		if strings.HasPrefix(k, uid+"/") {
			delete(t.have, k)
		}
	}
}

// Token is a token of the pod's service account for an audience, bound to the pod.
func (m *Manager) Token(ctx context.Context, pod *corev1.Pod, audience string) (string, error) {
	t, err := m.tokens.get(ctx, pod, &corev1.ServiceAccountTokenProjection{Audience: audience})
	return t.value, err
}
