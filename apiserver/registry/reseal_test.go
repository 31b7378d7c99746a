package registry_test

import (
	"bytes"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/store"
)

// TestReseal: what a store has in the clear is sealed, and stays readable.
func TestReseal(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	ctx, c := t.Context(), s.Client(t).CoreV1().Secrets("default")
	if _, err := c.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Data: map[string][]byte{"k": []byte("hidden")}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// As a version without encryption would have left it.
	res := s.Registry.Resource(corev1.SchemeGroupVersion.WithResource("secrets"))
	plain, err := codec.EncodeStored(res.Kind, &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: "y", Namespace: "default"}, Data: map[string][]byte{"k": []byte("hidden")}})
	if err != nil {
		t.Fatal(err)
	}
	if w, err := s.Store.Write(ctx, store.Write{Key: "/registry/secrets/default/y", Value: plain}); err != nil || !w.Done {
		t.Fatal(err)
	}
	if n, err := s.Registry.Reseal(ctx); n != 1 || err != nil {
		t.Errorf("%d values were sealed anew, want 1: %v", n, err)
	}
	if n, err := s.Registry.Reseal(ctx); n != 0 || err != nil {
		t.Errorf("%d values were sealed anew, want none: %v", n, err)
	}
	// A write of the server's own returns when its cache has all that came before.
	if _, err := c.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "z"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x", "y"} {
		kv, err := s.Store.Get(ctx, "/registry/secrets/default/"+name)
		if err != nil || bytes.Contains(kv.Value, []byte("hidden")) {
			t.Fatalf("stored %q, %v", kv.Value, err)
		}
		if got, err := c.Get(ctx, name, metav1.GetOptions{}); err != nil || string(got.Data["k"]) != "hidden" {
			t.Errorf("secret %s: %v, %v", name, got, err)
		}
	}
}
