package engine

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
)

// PodFrom makes the pod that a template describes, owned by ref.
func PodFrom(t *corev1.PodTemplateSpec, namespace, generateName string, ref metav1.OwnerReference) *corev1.Pod {
	t = t.DeepCopy()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, GenerateName: generateName, Labels: t.Labels, Annotations: t.Annotations,
			Finalizers: t.Finalizers, OwnerReferences: []metav1.OwnerReference{ref},
		},
		Spec: t.Spec,
	}
}

// CreatePod creates a pod for owner and reports it as an event of owner.
func (e *Env) CreatePod(ctx context.Context, owner client.Object, pod *corev1.Pod) (*corev1.Pod, error) {
	obj, err := e.Client.Create(ctx, client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name}, pod)
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			e.Recorder.Event(owner, corev1.EventTypeWarning, "FailedCreate", fmt.Sprintf("Error creating: %v", err))
		}
		return nil, err
	}
	created, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("creating a pod in %s: server answered a %T", pod.Namespace, obj)
	}
	e.Ledger.Created(KeyOf(owner), e.Cache(client.Pods), created)
	e.Recorder.Event(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: "+created.Name)
	return created, nil
}

// DeletePod deletes a pod of owner and reports it as an event of owner.
func (e *Env) DeletePod(ctx context.Context, owner client.Object, pod *corev1.Pod) error {
	uid := pod.UID
	err := e.Client.Delete(ctx, client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name},
		metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		e.Recorder.Event(owner, corev1.EventTypeWarning, "FailedDelete", fmt.Sprintf("Error deleting: %v", err))
		return fmt.Errorf("deleting pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	e.Recorder.Event(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: "+pod.Name)
	return nil
}

// SlowStart calls fn for 0 to n-1 in parallel batches of 1, 2, 4 and so on, and
// ends after the first batch with a failure, so that a quota that is used up is
// not stormed. It returns the successful calls and the first error.
func SlowStart(n int, fn func(i int) error) (done int, err error) {
	for from, batch := 0, 1; from < n; from, batch = from+batch, batch*2 {
		ok, err := Parallel(min(batch, n-from), func(i int) error { return fn(from + i) })
		done += ok
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// maxParallel bounds the writes that one reconcile has under way.
const maxParallel = 64

// Parallel calls fn for 0 to n-1 at the same time and returns the number of
// successes and the first error.
func Parallel(n int, fn func(i int) error) (done int, first error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := fn(i)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				done++
			} else if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	return done, first
}
