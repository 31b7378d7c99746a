package registry_test

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/store"
)

// lagging is a store whose events can be held up.
type lagging struct {
	store.Store
	held chan struct{} // a value holds events up until it is closed
}

func (l *lagging) Watch(ctx context.Context, prefix string, revision int64) store.Watcher {
	return &lateWatcher{l.Store.Watch(ctx, prefix, revision), l}
}

type lateWatcher struct {
	store.Watcher
	l *lagging
}

func (w *lateWatcher) Next() ([]store.Event, error) {
	events, err := w.Watcher.Next()
	select {
	case <-w.l.held:
		<-w.l.held
	default:
	}
	return events, err
}

// Whoever is told that an object exists finds it: a create is refused only after
// reads show why.
func TestRefusedCreateIsSeen(t *testing.T) {
	l := &lagging{Store: store.NewMemory(), held: make(chan struct{}, 1)}
	s := apitest.Start(t, apitest.Options{Store: l})
	ctx, c := t.Context(), s.Client(t).CoreV1().ConfigMaps("default")
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}
	value, err := codec.EncodeStored(s.Registry.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Kind, cm)
	if err != nil {
		t.Fatal(err)
	}
	l.held <- struct{}{}
	if w, err := l.Write(ctx, store.Write{Key: "/registry/configmaps/default/x", Value: value}); err != nil || !w.Done {
		t.Fatal(w, err)
	}
	soon, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := c.Create(soon, cm, metav1.CreateOptions{}); err == nil || apierrors.IsAlreadyExists(err) {
		t.Errorf("a create whose refusal cannot be seen yet: %v", err)
	}
	close(l.held)
	if _, err := c.Create(ctx, cm, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("create: %v, want AlreadyExists", err)
	}
	if _, err := c.Get(ctx, "x", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}
