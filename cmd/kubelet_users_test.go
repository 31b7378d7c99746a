package cmd

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"knarr.dev/knarr/client"
)

// reviews answers TokenReviews: good tokens are those that begin so.
type reviews struct {
	client.Interface
	asked int
	err   error
}

func (r *reviews) Create(_ context.Context, k client.Key, obj client.Object) (client.Object, error) {
	r.asked++
	review := obj.(*authenticationv1.TokenReview)
	if review.Spec.Token == "good" {
		review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: "somebody"}}
	}
	return review, r.err
}

func TestBearerTokensOfTheAgentsServer(t *testing.T) {
	now := time.Unix(1000, 0)
	api := &reviews{}
	v := &tokenReviewer{client: api, now: func() time.Time { return now }}
	try := func(header, want string) {
		t.Helper()
		r := httptest.NewRequest("GET", "/metrics", nil)
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		user, err := kubeletUser(r, v.user)
		if (err != nil) != (want == "") || err == nil && user.Username != want {
			t.Errorf("%q: %v, %v", header, user, err)
		}
	}
	try("", "")
	try("Basic good", "")
	try("Bearer ", "")
	if api.asked != 0 {
		t.Errorf("asked %d times", api.asked)
	}
	try("Bearer good", "somebody")
	try("Bearer good", "somebody")
	if api.asked != 1 {
		t.Errorf("asked %d times", api.asked)
	}
	now = now.Add(tokenKnownFor)
	try("Bearer good", "somebody")
	try("Bearer bad", "")
	try("Bearer bad", "")
	if api.asked != 4 {
		t.Errorf("asked %d times", api.asked)
	}
	api.err = errors.New("away")
	try("Bearer good", "somebody")
	now = now.Add(tokenKnownFor)
	try("Bearer good", "")
}
