package local_test

import (
	"encoding/json"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/cmd/local"
)

func open(t *testing.T) (*local.Server, *apitest.Server) {
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "a")
	return &local.Server{Registry: s.Registry, Authz: s.Authz, Tokens: s.Tokens, Now: time.Now}, s
}

func config(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, Labels: map[string]string{"v": value}}, Data: map[string]string{"v": value}}
}

// A component reads its own writes at once, sees each change once and in order,
// and gets the server's own object, not a copy.
func TestClient(t *testing.T) {
	s, _ := open(t)
	c := s.As(auth.Component("tester", auth.GroupMasters))
	ctx := t.Context()
	key := client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "x"}
	events := make(chan client.Event, 16)
	cancel := c.Cache(client.ConfigMaps, "metadata.name=x").Subscribe(func(e client.Event) { events <- e })

	made, err := c.Create(ctx, key, config("x", "1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(ctx, client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "other"}, config("other", "1")); err != nil {
		t.Fatal(err)
	}
	cache := c.Cache(client.ConfigMaps, "")
	if got, ok := cache.Get("a", "x"); !ok || got != made {
		t.Errorf("the cache has %p, the write answered %p", got, made)
	}
	if n := len(client.ListCached[*corev1.ConfigMap](cache, "a", labels.SelectorFromSet(labels.Set{"v": "1"}))); n != 2 {
		t.Errorf("%d objects match, want 2", n)
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"v": "2"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Patch(ctx, key, client.Patch{Type: types.MergePatchType, Data: patch}); err != nil {
		t.Fatal(err)
	}
	stale := made.DeepCopyObject().(client.Object)
	if _, err := c.Update(ctx, key, stale); !apierrors.IsConflict(err) {
		t.Errorf("update of a stale object: %v", err)
	}
	if err := c.Delete(ctx, key, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []client.EventType{client.Added, client.Modified, client.Deleted} {
		if e := <-events; e.Type != want || e.Object.GetName() != "x" {
			t.Errorf("event %d: %v of %s", i, e.Type, e.Object.GetName())
		}
	}
	cancel()
	if _, err := c.Get(ctx, key); !apierrors.IsNotFound(err) {
		t.Errorf("get of a deleted object: %v", err)
	}
}

// A component may do what its roles permit and nothing else, although it runs in
// the server's process.
func TestClientIsAuthorized(t *testing.T) {
	s, _ := open(t)
	admin := s.As(auth.Component("tester", auth.GroupMasters))
	ctx := t.Context()
	gv := rbacv1.SchemeGroupVersion
	for _, o := range []struct {
		resource client.Resource
		obj      client.Object
	}{
		{gv.WithResource("clusterroles"), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"configmaps"}}}}},
		{gv.WithResource("clusterrolebindings"), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "part"}}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "reader"}}},
	} {
		if _, err := admin.Create(ctx, client.Key{Resource: o.resource, Name: o.obj.GetName()}, o.obj); err != nil {
			t.Fatal(err)
		}
	}
	part := s.As(auth.Component("part"))
	if _, err := part.Get(ctx, client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "absent"}); !apierrors.IsNotFound(err) {
		t.Errorf("permitted get: %v", err)
	}
	if _, err := part.Create(ctx, client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "x"}, config("x", "1")); !apierrors.IsForbidden(err) {
		t.Errorf("forbidden create: %v", err)
	}
	if err := part.Delete(ctx, client.Key{Resource: client.Namespaces, Name: "a"}, metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("forbidden delete: %v", err)
	}
}
