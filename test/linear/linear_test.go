package linear

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

const (
	workers  = 6
	watchers = 3
	keys     = 4 // in each round; fresh ones, so that histories stay short
)

func number(t *testing.T, name string, otherwise int64) int64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestKills kills the server KNARR_KILLS times (3) at moments drawn from KNARR_SEED
// while clients write, read and watch. make linear kills a hundred times.
func TestKills(t *testing.T) {
	kills, seed := int(number(t, "KNARR_KILLS", 3)), number(t, "KNARR_SEED", time.Now().UnixNano())
	t.Logf("KNARR_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(uint64(seed), 0))
	s := newServer(t)
	h := &history{start: time.Now()}
	connect := func() typedcorev1.ConfigMapInterface {
		c, err := kubernetes.NewForConfig(s.config())
		if err != nil {
			t.Fatal(err)
		}
		return c.CoreV1().ConfigMaps("linear")
	}
	c, err := kubernetes.NewForConfig(s.config())
	if err != nil {
		t.Fatal(err)
	}
	ns, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "linear"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(kills)*15*time.Second)
	defer cancel()
	var following sync.WaitGroup
	seen := make([]sight, watchers)
	for i := range watchers {
		maps := connect()
		following.Go(func() {
			seen[i] = follow(ctx, maps, revision(ns.ResourceVersion), "end")
		})
	}
	team := make([]*worker, workers)
	for i := range team {
		team[i] = &worker{id: i, maps: connect(), h: h, rnd: rand.New(rand.NewPCG(uint64(seed), uint64(i+1)))}
	}
	for k := range kills {
		round(ctx, s, rnd, team, fmt.Sprintf("k%d", k))
		if k%10 == 9 {
			fmt.Fprintf(os.Stderr, "linear: %d of %d kills, %d requests\n", k+1, kills, len(h.ops))
		}
	}
	team[0].last = map[string]int64{}
	if a := team[0].do(request{verb: create, key: "end", value: "end"}); a.outcome != done {
		t.Fatalf("the last write: %+v", a)
	}
	following.Wait()
	for i := range watchers {
		for _, err := range []error{seen[i].err, seen[i].orderly(), seen[i].complete(h), seen[0].equal(&seen[i])} {
			if err != nil {
				t.Errorf("watcher %d: %v", i, err)
			}
		}
	}
	switch result, _ := porcupine.CheckOperationsVerbose(model, h.ops, 2*time.Minute); result {
	case porcupine.Ok:
	case porcupine.Unknown:
		t.Error("the history is too long to be checked")
	default:
		explain(t, h)
	}
	unanswered := 0
	for _, op := range h.ops {
		if op.Output.(answer).outcome == unknown {
			unanswered++
		}
	}
	t.Logf("%d kills, %d requests, %d of them without answer", kills, len(h.ops), unanswered)
	for i, s := range seen {
		t.Logf("watcher %d: %d events in %d watches, %d of which began with a list", i, len(s.events), s.resumed, len(s.gaps))
	}
}

// round lets the clients work on fresh objects, kills the server meanwhile, starts
// it again, and ends with a read of each object.
func round(ctx context.Context, s *server, rnd *rand.Rand, team []*worker, prefix string) {
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, w := range team {
		wg.Go(func() { w.work(ctx, names) })
	}
	pause(time.Duration(20+rnd.IntN(300)) * time.Millisecond)
	s.kill()
	s.start()
	pause(100 * time.Millisecond)
	cancel()
	wg.Wait()
	for _, k := range names {
		team[0].do(request{verb: read, key: k})
	}
}

// explain prints the history of the objects that no order explains, up to the answer
// that nothing explains.
func explain(t *testing.T, h *history) {
	t.Helper()
	for _, part := range model.Partition(h.ops) {
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
		for i := range part {
			if porcupine.CheckOperations(model, until(part, i)) {
				continue
			}
			t.Errorf("no order explains what was told of %s", part[0].Input.(request).key)
			for _, op := range part[max(0, i-20) : i+1] {
				t.Logf("client %d, %v to %v: %v %s", op.ClientId, time.Duration(op.Call), time.Duration(op.Return), op.Input.(request).verb, model.DescribeOperation(op.Input, op.Output))
			}
			break
		}
	}
}

// until is a history as it was known when its i-th answer came: what was asked
// before had no answer yet.
func until(part []porcupine.Operation, i int) []porcupine.Operation {
	out := slices.Clone(part[:i+1])
	for _, op := range part[i+1:] {
		if op.Call < part[i].Return && op.Input.(request).verb != read {
			op.Output, op.Return = answer{outcome: unknown}, never
			out = append(out, op)
		}
	}
	return out
}
