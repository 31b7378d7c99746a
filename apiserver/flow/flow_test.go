package flow_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/flow"
)

// settled waits until a FlowSchema has the condition Dangling with a status.
func settled(t *testing.T, s *apitest.Server, name string, want flowcontrolv1.ConditionStatus) *flowcontrolv1.FlowSchema {
	t.Helper()
	w, err := s.Client(t).FlowcontrolV1().FlowSchemas().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		f, ok := e.Object.(*flowcontrolv1.FlowSchema)
		if !ok || e.Type == watch.Deleted || f.Name != name {
			continue
		}
		for _, c := range f.Status.Conditions {
			if c.Type == flowcontrolv1.FlowSchemaConditionDangling && c.Status == want {
				return f
			}
		}
	}
	t.Fatalf("the watch ended before FlowSchema %s had Dangling=%s", name, want)
	return nil
}

func TestObjectsAreKept(t *testing.T) {
	s := apitest.Start(t, apitest.Options{FlowObjects: true})
	c, ctx := s.Client(t).FlowcontrolV1(), t.Context()
	settled(t, s, "system-nodes", flowcontrolv1.ConditionFalse)
	schemas, err := c.FlowSchemas().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := len(bootstrap.MandatoryFlowSchemas) + len(bootstrap.SuggestedFlowSchemas); len(schemas.Items) != want {
		t.Errorf("%d FlowSchemas, want %d", len(schemas.Items), want)
	}
	for _, f := range schemas.Items {
		if len(f.ManagedFields) > 0 { // to find them out, the start would parse every schema
			t.Errorf("FlowSchema %s has managed fields: %v", f.Name, f.ManagedFields)
		}
	}
	// What is suggested comes back; who wants it otherwise says so.
	if err := c.FlowSchemas().Delete(ctx, "system-nodes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f := settled(t, s, "system-nodes", flowcontrolv1.ConditionFalse)
	f.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] = "false"
	f.Spec.PriorityLevelConfiguration.Name = "none"
	if _, err := c.FlowSchemas().Update(ctx, f, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	settled(t, s, "system-nodes", flowcontrolv1.ConditionTrue)
}

func TestRequests(t *testing.T) {
	s := apitest.Start(t, apitest.Options{FlowObjects: true, Seats: 10})
	settled(t, s, "probes", flowcontrolv1.ConditionFalse)
	client := apitest.HTTP(t, s.As(t, "u"))
	get := func() *http.Response {
		resp, err := client.Get(s.URL + "/api")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	schema, err := s.Client(t).FlowcontrolV1().FlowSchemas().Get(t.Context(), "global-default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	resp := get()
	if have := resp.Header.Get("X-Kubernetes-PF-FlowSchema-UID"); resp.StatusCode != 200 || have != string(schema.UID) {
		t.Errorf("status %d, flow schema %q, want 200 and %q", resp.StatusCode, have, schema.UID)
	}
	// catch-all refuses when its seats are taken.
	nobody := &auth.Action{User: &authenticationv1.UserInfo{Username: "n"}, Verb: "get", Path: "/api"}
	class := s.Flow.Classify(nobody)
	if class.Schema != "catch-all" {
		t.Fatalf("a user without groups belongs to %s", class.Schema)
	}
	var held []flow.Grant
	for {
		g, err := s.Flow.Begin(t.Context(), class, nobody, 1)
		if err != nil {
			if !errors.Is(err, flow.ConcurrencyLimit) {
				t.Errorf("refused by %v", err)
			}
			break
		}
		if held = append(held, g); len(held) > 20 {
			t.Fatal("there is no end of seats")
		}
	}
	// The others have what they keep; a queue that is full answers 429.
	for i := range held {
		held[i].Done()
	}
	f, err := s.Client(t).FlowcontrolV1().PriorityLevelConfigurations().Create(t.Context(), &flowcontrolv1.PriorityLevelConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "tiny"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited,
			Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: new(int32(1)), BorrowingLimitPercent: new(int32(0)),
				LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rule := flowcontrolv1.PolicyRulesWithSubjects{Subjects: []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: "u"}}},
		NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}}}}
	if _, err := s.Client(t).FlowcontrolV1().FlowSchemas().Create(t.Context(), &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "tiny"},
		Spec: flowcontrolv1.FlowSchemaSpec{MatchingPrecedence: 10, PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: f.Name},
			Rules: []flowcontrolv1.PolicyRulesWithSubjects{rule}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	u := &auth.Action{User: &authenticationv1.UserInfo{Username: "u"}, Verb: "get", Path: "/api"}
	g, err := s.Flow.Begin(t.Context(), s.Flow.Classify(u), u, 1)
	if err != nil {
		t.Fatal(err)
	}
	resp = get()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" || !strings.Contains(string(body), "Too many requests") {
		t.Errorf("with the only seat taken: %d, Retry-After %q, %q, %v", resp.StatusCode, resp.Header.Get("Retry-After"), body, err)
	}
	g.Done()
	if resp = get(); resp.StatusCode != 200 || resp.Header.Get("X-Kubernetes-PF-PriorityLevel-UID") != string(f.UID) {
		t.Errorf("with the seat free again: %d", resp.StatusCode)
	}
}

// TestWaiterGivesUp: a request whose client leaves its queue takes no seat.
func TestWaiterGivesUp(t *testing.T) {
	s := apitest.Start(t, apitest.Options{FlowObjects: true, Seats: 10})
	settled(t, s, "probes", flowcontrolv1.ConditionFalse)
	u := &auth.Action{User: &authenticationv1.UserInfo{Username: "u", Groups: []string{auth.GroupAuthenticated}}, Verb: "get", Path: "/api"}
	class := s.Flow.Classify(u)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var held []flow.Grant
	for range 100 {
		g, err := s.Flow.Begin(ctx, class, u, 1)
		if err != nil {
			if !errors.Is(err, flow.Cancelled) {
				t.Fatal(err)
			}
			for i := range held {
				held[i].Done()
			}
			if g, err = s.Flow.Begin(t.Context(), class, u, 1); err != nil {
				t.Fatal(err)
			}
			g.Done()
			return
		}
		held = append(held, g)
	}
	t.Fatal("there is no end of seats")
}

// BenchmarkUncontended is what each request pays for fairness.
func BenchmarkUncontended(b *testing.B) {
	s := apitest.Start(b, apitest.Options{FlowObjects: true, Unwatched: true})
	w, err := s.Client(b).FlowcontrolV1().FlowSchemas().Watch(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for e := range w.ResultChan() {
		if f, ok := e.Object.(*flowcontrolv1.FlowSchema); ok && f.Name == "probes" && len(f.Status.Conditions) > 0 {
			w.Stop()
			break
		}
	}
	for name, u := range map[string]*authenticationv1.UserInfo{
		"admin":   auth.Component("admin", auth.GroupMasters),
		"user":    auth.Component("u"),
		"account": {Username: "system:serviceaccount:x:y", Groups: []string{auth.GroupServiceAccounts, auth.GroupServiceAccounts + ":x", auth.GroupAuthenticated}},
	} {
		a := &auth.Action{User: u, Verb: "get", Group: "", Version: "v1", Resource: "configmaps", Namespace: "x", Name: "c"}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				g, err := s.Flow.Begin(b.Context(), s.Flow.Classify(a), a, 1)
				if err != nil {
					b.Fatal(err)
				}
				g.Done()
			}
		})
	}
}
