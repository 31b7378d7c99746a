package linear

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// history is what all clients asked and were told.
type history struct {
	mu    sync.Mutex
	start time.Time
	ops   []porcupine.Operation
}

func (h *history) add(client int, from time.Duration, r request, a answer) {
	to := int64(time.Since(h.start))
	switch a.outcome {
	case untaken:
		return
	case unknown:
		if r.verb == read {
			return // says nothing
		}
		to = never
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: r, Output: a, Call: int64(from), Return: to})
}

// worker is one client.
type worker struct {
	id   int
	maps typedcorev1.ConfigMapInterface
	h    *history
	rnd  *rand.Rand
	last map[string]int64 // revisions that it knows
	n    int
}

// work sends requests about the keys until ctx ends.
func (w *worker) work(ctx context.Context, keys []string) {
	w.last = map[string]int64{}
	for ctx.Err() == nil {
		key := keys[w.rnd.IntN(len(keys))]
		w.n++
		value := fmt.Sprintf("%d-%d", w.id, w.n)
		switch p := w.rnd.IntN(10); {
		case p < 2:
			w.do(request{verb: create, key: key, value: value})
		case p < 5 && w.last[key] != 0:
			w.do(request{verb: update, key: key, value: value, old: w.last[key]})
		case p < 6:
			w.do(request{verb: remove, key: key})
		case p < 7:
			w.list(keys)
		default:
			w.do(request{verb: read, key: key})
		}
	}
}

// do sends one request. Its time is its own, so that an end of the round cuts none off.
func (w *worker) do(r request) answer {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: r.key}, Data: map[string]string{"v": r.value}}
	from := time.Since(w.h.start)
	var err error
	switch r.verb {
	case create:
		m, err = w.maps.Create(ctx, m, metav1.CreateOptions{})
	case update:
		m.ResourceVersion = strconv.FormatInt(r.old, 10)
		m, err = w.maps.Update(ctx, m, metav1.UpdateOptions{})
	case remove:
		err = w.maps.Delete(ctx, r.key, metav1.DeleteOptions{})
	case read:
		m, err = w.maps.Get(ctx, r.key, metav1.GetOptions{})
	}
	a := answer{outcome: classify(err)}
	if err == nil && r.verb != remove {
		a.value, a.revision = m.Data["v"], revision(m.ResourceVersion)
		w.last[r.key] = a.revision
	}
	w.h.add(w.id, from, r, a)
	if a.outcome == untaken {
		pause(10 * time.Millisecond) // nobody listens
	}
	return a
}

// list reads all keys at once.
func (w *worker) list(keys []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	from := time.Since(w.h.start)
	l, err := w.maps.List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, k := range keys {
		a := answer{outcome: absent}
		for i := range l.Items {
			if l.Items[i].Name == k {
				a = answer{value: l.Items[i].Data["v"], revision: revision(l.Items[i].ResourceVersion)}
			}
		}
		w.h.add(w.id, from, request{verb: read, key: k}, a)
	}
}

func classify(err error) outcome {
	var dial *net.OpError
	switch {
	case err == nil:
		return done
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
		return refused
	case apierrors.IsNotFound(err):
		return absent
	case errors.As(err, &dial) && dial.Op == "dial":
		return untaken
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return breaking
	}
	return unknown
}

func revision(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func pause(d time.Duration) { <-time.After(d) }
