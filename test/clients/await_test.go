package clients

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// await watches a kind, does something, and waits for an event.
func await(t *testing.T, c ctrlclient.WithWatch, ns, kind, what string, cond func(watch.Event) bool, do func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var list ctrlclient.ObjectList = &corev1.ConfigMapList{}
	if kind == siteKind.Kind {
		u := &unstructured.UnstructuredList{}
		u.SetGroupVersionKind(siteKind)
		list = u
	}
	w, err := c.Watch(ctx, list, ctrlclient.InNamespace(ns))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if err := do(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("%s: the watch ended", what)
			}
			if cond(e) {
				return
			}
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		}
	}
}

// eventually repeats check, which asks the cluster, until it succeeds.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); <-tick.C {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}
