package api

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/store"
)

func fill(t *testing.T, c typed.ConfigMapInterface, n int) {
	t.Helper()
	for i := range n {
		must(c.Create(t.Context(), configMap(fmt.Sprintf("c%d", i)), metav1.CreateOptions{}))(t)
	}
}

func revision(t *testing.T, s string) int64 {
	t.Helper()
	return must(strconv.ParseInt(s, 10, 64))(t)
}

func TestPagesShowOneRevision(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Etcd: true})
	c, ctx := s.Client(t).CoreV1().ConfigMaps("default"), t.Context()
	fill(t, c, 5)
	first := must(c.List(ctx, metav1.ListOptions{Limit: 2}))(t)
	if names(first) != "c0 c1" || first.Continue == "" || first.RemainingItemCount == nil || *first.RemainingItemCount != 3 {
		t.Fatalf("first page: %s %+v", names(first), first.ListMeta)
	}
	must(c.Create(ctx, configMap("c11"), metav1.CreateOptions{}))(t)
	if err := c.Delete(ctx, "c3", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	second := must(c.List(ctx, metav1.ListOptions{Limit: 2, Continue: first.Continue}))(t)
	if names(second) != "c2 c3" || second.ResourceVersion != first.ResourceVersion || *second.RemainingItemCount != 1 {
		t.Errorf("second page: %s %+v", names(second), second.ListMeta)
	}
	third := must(c.List(ctx, metav1.ListOptions{Continue: second.Continue}))(t)
	if names(third) != "c4" || third.Continue != "" || third.RemainingItemCount != nil {
		t.Errorf("third page: %s %+v", names(third), third.ListMeta)
	}
	if err := s.Store.Compact(ctx, s.Registry.Revision()); err != nil {
		t.Fatal(err)
	}
	_, err := c.List(ctx, metav1.ListOptions{Limit: 2, Continue: first.Continue})
	if !apierrors.IsResourceExpired(err) {
		t.Fatalf("after compaction: %v", err)
	}
	token := err.(apierrors.APIStatus).Status().Continue
	rest := must(c.List(ctx, metav1.ListOptions{Continue: token}))(t)
	if names(rest) != "c11 c2 c4" {
		t.Errorf("an inconsistent continuation shows %s", names(rest))
	}
	for _, bad := range []string{"x", "e30", "!!"} {
		if _, err := c.List(ctx, metav1.ListOptions{Continue: bad}); !apierrors.IsBadRequest(err) {
			t.Errorf("token %q: %v", bad, err)
		}
	}
	if _, err := c.List(ctx, metav1.ListOptions{Continue: first.Continue, ResourceVersion: "5"}); !apierrors.IsBadRequest(err) {
		t.Errorf("token with a version: %v", err)
	}
}

func TestListRevisions(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Etcd: true})
	c, ctx := s.Client(t).CoreV1().ConfigMaps("default"), t.Context()
	a := must(c.Create(ctx, configMap("a"), metav1.CreateOptions{}))(t)
	must(c.Create(ctx, configMap("b"), metav1.CreateOptions{}))(t)
	for _, o := range []struct {
		opts metav1.ListOptions
		want string
	}{
		{metav1.ListOptions{}, "a b"},
		{metav1.ListOptions{ResourceVersion: "0"}, "a b"},
		{metav1.ListOptions{ResourceVersion: a.ResourceVersion}, "a b"},
		{metav1.ListOptions{ResourceVersion: a.ResourceVersion, ResourceVersionMatch: "NotOlderThan"}, "a b"},
		{metav1.ListOptions{ResourceVersion: a.ResourceVersion, ResourceVersionMatch: "Exact"}, "a"},
		{metav1.ListOptions{ResourceVersion: a.ResourceVersion, Limit: 10}, "a"},
		{metav1.ListOptions{ResourceVersion: "0", ResourceVersionMatch: "NotOlderThan", Limit: 1}, "a"},
	} {
		if got := names(must(c.List(ctx, o.opts))(t)); got != o.want {
			t.Errorf("%+v: %q, want %q", o.opts, got, o.want)
		}
	}
	future := newPeer(t, s.Admin(t)).do(t, "GET", "/api/v1/configmaps?resourceVersion=999999", "")
	if st := future.status(t); future.code != 504 || future.header.Get("Retry-After") != "1" || st.Reason != metav1.StatusReasonTimeout ||
		st.Details.Causes[0].Type != metav1.CauseTypeResourceVersionTooLarge || !strings.HasPrefix(st.Message, "Timeout: Too large resource version: 999999, current: ") {
		t.Errorf("a revision of the future: %d %s", future.code, future.body)
	}
	if _, err := c.List(ctx, metav1.ListOptions{ResourceVersion: "x"}); !apierrors.IsBadRequest(err) {
		t.Errorf("no revision: %v", err)
	}
}

// next waits for one event.
func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		if !ok {
			t.Fatal("the watch ended")
		}
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event within 10 s")
	}
	return watch.Event{}
}

func show(e watch.Event) string {
	switch o := e.Object.(type) {
	case *corev1.ConfigMap:
		return fmt.Sprintf("%s %s%s", e.Type, o.Name, o.Labels["v"])
	case *metav1.Status:
		return fmt.Sprintf("%s %d %s", e.Type, o.Code, o.Reason)
	}
	return fmt.Sprintf("%s %T", e.Type, e.Object)
}

func expect(t *testing.T, w watch.Interface, want ...string) {
	t.Helper()
	for _, x := range want {
		if got := show(next(t, w)); got != x {
			t.Fatalf("event %q, want %q", got, x)
		}
	}
}

func TestWatches(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	for _, media := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(media, func(t *testing.T) {
			cfg := s.Admin(t)
			cfg.ContentType, cfg.AcceptContentTypes = media, media
			name := "ns" + fmt.Sprint(len(media))
			s.Namespace(t, name)
			c, ctx := apitest.ClientOf(t, cfg).CoreV1().ConfigMaps(name), t.Context()
			in := func(n string, v string) *corev1.ConfigMap {
				cm := configMap(n)
				cm.Namespace, cm.Labels = name, map[string]string{"v": v}
				return cm
			}
			a := must(c.Create(ctx, in("a", "1"), metav1.CreateOptions{}))(t)
			follow := func(o metav1.ListOptions) watch.Interface {
				w := must(c.Watch(ctx, o))(t)
				t.Cleanup(w.Stop)
				return w
			}
			all := follow(metav1.ListOptions{})
			from := follow(metav1.ListOptions{ResourceVersion: a.ResourceVersion})
			ones := follow(metav1.ListOptions{LabelSelector: "v=1"})
			named := follow(metav1.ListOptions{FieldSelector: "metadata.name=b", ResourceVersion: a.ResourceVersion})
			yes, no := true, false
			stream := follow(metav1.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: "NotOlderThan"})
			quiet := follow(metav1.ListOptions{SendInitialEvents: &no, ResourceVersionMatch: "NotOlderThan"})
			expect(t, all, "ADDED a1")
			expect(t, stream, "ADDED a1")
			mark := next(t, stream)
			if cm := mark.Object.(*corev1.ConfigMap); mark.Type != watch.Bookmark || cm.Annotations[metav1.InitialEventsAnnotationKey] != "true" || revision(t, cm.ResourceVersion) < revision(t, a.ResourceVersion) {
				t.Errorf("the end of the initial events: %+v", mark)
			}
			expect(t, ones, "ADDED a1")
			must(c.Update(ctx, in("a", "2"), metav1.UpdateOptions{}))(t)
			must(c.Create(ctx, in("b", "1"), metav1.CreateOptions{}))(t)
			must(c.Update(ctx, in("a", "1"), metav1.UpdateOptions{}))(t)
			if err := c.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			last := []string{"MODIFIED a2", "ADDED b1", "MODIFIED a1", "DELETED a1"}
			expect(t, all, last...)
			expect(t, from, last...)
			expect(t, stream, last...)
			expect(t, quiet, last...)
			expect(t, named, "ADDED b1")
			// Leaving a selection is shown as a deletion, with the state that was selected.
			expect(t, ones, "DELETED a1", "ADDED b1", "ADDED a1", "DELETED a1")
		})
	}
}

func TestWatchFromBeforeTheFirstObject(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t).CoreV1().ConfigMaps("default"), t.Context()
	w := must(c.Watch(ctx, metav1.ListOptions{ResourceVersion: "1"}))(t)
	defer w.Stop()
	must(c.Create(ctx, configMap("x"), metav1.CreateOptions{}))(t)
	expect(t, w, "ADDED x")
	a := newPeer(t, s.Admin(t)).do(t, "GET", "/api/v1/configmaps?watch=1&resourceVersion=0&timeoutSeconds=1", "")
	if a.code != 200 || !strings.HasPrefix(a.body, `{"type":"ADDED","object":{"kind":"ConfigMap","apiVersion":"v1"`) {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func TestWatchEndsWithItsTimeout(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	w := must(s.Client(t).CoreV1().ConfigMaps("").Watch(t.Context(), metav1.ListOptions{TimeoutSeconds: new(int64(1))}))(t)
	select {
	case e, ok := <-w.ResultChan():
		if ok {
			t.Errorf("event %v", e)
		}
	case <-time.After(10 * time.Second):
		t.Error("the watch goes on")
	}
}

func TestExpiredWatchIsAnEvent(t *testing.T) {
	st := store.NewMemory()
	for i := range 5 { // history from before this server
		must(st.Write(t.Context(), store.Write{Key: fmt.Sprintf("/registry/other/%d", i)}))(t)
	}
	if err := st.Compact(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	s := apitest.Start(t, apitest.Options{Store: st})
	a := newPeer(t, s.Admin(t)).do(t, "GET", "/api/v1/events?watch=1&resourceVersion=2", "")
	var e struct {
		Type   string
		Object metav1.Status
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || a.code != 200 || e.Type != "ERROR" || e.Object.Code != 410 || e.Object.Reason != metav1.StatusReasonExpired || !strings.HasPrefix(e.Object.Message, "too old resource version: 2 (") {
		t.Errorf("%d %s", a.code, a.body)
	}
}
