package engine_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/controller/engine/enginetest"
)

func on(reconcile func(env *engine.Env, ctx context.Context, key engine.Key) (time.Duration, error)) engine.Controller {
	return engine.Controller{
		Name:    "test",
		Watches: []engine.Watch{{Resource: client.ConfigMaps, Keys: engine.Self}},
		Writes:  []engine.Write{{Resource: client.ConfigMaps, Verbs: []string{"update"}}},
		Workers: 4,
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return reconcile(env, ctx, key) }
		},
	}
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
}

func TestPanicCostsOneTryOnly(t *testing.T) {
	var tries atomic.Int32
	done := make(chan struct{}, 1)
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, on(func(*engine.Env, context.Context, engine.Key) (time.Duration, error) {
		if tries.Add(1) < 3 {
			panic("on purpose")
		}
		done <- struct{}{}
		return 0, nil
	}))
	b.Make(client.ConfigMaps, configMap("x"))
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("not tried again after %d panics", tries.Load())
	}
}

func TestUndeclaredWriteIsRefused(t *testing.T) {
	got := make(chan error, 1)
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, on(func(env *engine.Env, ctx context.Context, key engine.Key) (time.Duration, error) {
		got <- env.Client.Delete(ctx, client.Key{Resource: client.ConfigMaps, Namespace: key.Namespace, Name: key.Name}, metav1.DeleteOptions{})
		return 0, nil
	}))
	b.Make(client.ConfigMaps, configMap("x"))
	if err := <-got; err == nil || !strings.Contains(err.Error(), "has not declared that it may delete configmaps a/x") {
		t.Errorf("undeclared delete: %v", err)
	}
}

func TestRequeueAfterAndOneAtATime(t *testing.T) {
	var running, overlaps atomic.Int32
	calls := make(chan struct{}, 16)
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, on(func(*engine.Env, context.Context, engine.Key) (time.Duration, error) {
		if running.Add(1) > 1 {
			overlaps.Add(1)
		}
		defer running.Add(-1)
		calls <- struct{}{}
		return time.Millisecond, nil
	}))
	b.Make(client.ConfigMaps, configMap("x"))
	for range 5 {
		<-calls
	}
	if n := overlaps.Load(); n > 0 {
		t.Errorf("the same key was reconciled %d times at once", n)
	}
}

func TestSlowStartEndsWithTheFirstFailingBatch(t *testing.T) {
	var calls atomic.Int32
	done, err := engine.SlowStart(50, func(i int) error {
		calls.Add(1)
		if i == 3 {
			return context.Canceled
		}
		return nil
	})
	if err == nil || done != 6 || calls.Load() != 7 {
		t.Errorf("done %d, calls %d, error %v; want 6, 7 and an error", done, calls.Load(), err)
	}
}
