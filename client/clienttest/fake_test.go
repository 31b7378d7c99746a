package clienttest

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
)

func TestFakeLifeOfAPod(t *testing.T) {
	ctx := t.Context()
	f := New()
	k := client.Key{Resource: client.Pods, Namespace: "a", Name: "p"}
	events := make(chan client.Event, 16)
	defer f.Cache(client.Pods, "spec.nodeName=n1").Subscribe(func(e client.Event) { events <- e })()

	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}}
	if _, err := f.Create(ctx, k, pod); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create(ctx, k, pod); !apierrors.IsAlreadyExists(err) {
		t.Fatalf("second create: %v, want AlreadyExists", err)
	}
	if _, err := f.Create(ctx, k.Sub("binding"), &corev1.Binding{Target: corev1.ObjectReference{Name: "n1"}}); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Type != client.Added {
		t.Fatalf("binding seen as %v, want Added", e.Type)
	}
	bound, err := client.Get[*corev1.Pod](ctx, f, k)
	if err != nil {
		t.Fatal(err)
	}
	stale := bound.DeepCopy()
	stale.ResourceVersion = "1"
	if _, err := f.Update(ctx, k.Sub("status"), stale); !apierrors.IsConflict(err) {
		t.Fatalf("stale update: %v, want Conflict", err)
	}
	running := bound.DeepCopy()
	running.Status.Phase = corev1.PodRunning
	running.Spec.NodeName = "ignored"
	if _, err := f.Update(ctx, k.Sub("status"), running); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Type != client.Modified || e.Object.(*corev1.Pod).Spec.NodeName != "n1" {
		t.Fatalf("status update changed the spec: %+v", e.Object)
	}
	if err := f.Delete(ctx, k, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Object.GetDeletionTimestamp() == nil {
		t.Fatal("graceful delete of a bound pod removed it at once")
	}
	zero := int64(0)
	if err := f.Delete(ctx, k, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Type != client.Deleted {
		t.Fatalf("got %v, want Deleted", e.Type)
	}
}
