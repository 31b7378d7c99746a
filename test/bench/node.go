package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[min(len(d)-1, int(float64(len(d))*q))]
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }

func p50p99(d []time.Duration) string {
	return fmt.Sprintf("%s / %s ms (n=%d)", millis(quantile(d, .5)), millis(quantile(d, .99)), len(d))
}

// boot measures cold starts: an empty data directory each time.
func boot(ctx context.Context, c *cluster) ([]row, error) {
	var took []time.Duration
	for range 5 {
		if err := c.down(); err != nil {
			return nil, err
		}
		d, err := c.up(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, d)
	}
	size, err := os.Stat(c.binary)
	if err != nil {
		return nil, err
	}
	return []row{
		{"cold boot until usable (Ready, service account, root CA), median", millis(quantile(took, .5)) + " ms", "<= 700 / 1000 ms"},
		{"binary", fmt.Sprintf("%d MB", size.Size()/1e6), "<= 90 MB"},
	}, nil
}

func (c *cluster) pod(name string) *corev1.Pod {
	grace := int64(1)
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"bench": "1"}},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "c", Image: c.image}}}}
}

// podTimes follows when pods were seen Running, ready and gone.
type podTimes struct {
	mu                   sync.Mutex
	running, ready, gone map[string]time.Time
	changed              chan struct{}
}

func (c *cluster) followPods(ctx context.Context) (*podTimes, error) {
	w, err := c.client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{LabelSelector: "bench=1"})
	if err != nil {
		return nil, err
	}
	t := &podTimes{running: map[string]time.Time{}, ready: map[string]time.Time{}, gone: map[string]time.Time{}, changed: make(chan struct{}, 1)}
	go func() {
		for e := range w.ResultChan() {
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				return
			}
			t.mu.Lock()
			if _, seen := t.running[p.Name]; p.Status.Phase == corev1.PodRunning && !seen {
				t.running[p.Name] = time.Now()
			}
			if _, seen := t.ready[p.Name]; !seen && podReady(p) {
				t.ready[p.Name] = time.Now()
			}
			if e.Type == watch.Deleted {
				t.gone[p.Name] = time.Now()
			}
			t.mu.Unlock()
			select {
			case t.changed <- struct{}{}:
			default:
			}
		}
	}()
	return t, nil
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func (t *podTimes) await(ctx context.Context, m map[string]time.Time, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		t.mu.Lock()
		missing := 0
		for _, n := range names {
			if _, ok := m[n]; !ok {
				missing++
			}
		}
		t.mu.Unlock()
		if missing == 0 {
			return nil
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d pods did not get there: %w", missing, len(names), ctx.Err())
		}
	}
}

func pods(ctx context.Context, c *cluster) ([]row, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.followPods(ctx)
	if err != nil {
		return nil, err
	}
	api := c.client.CoreV1().Pods("default")
	var start, stop []time.Duration
	zero := int64(0)
	for i := range 40 {
		name := fmt.Sprintf("one-%d", i)
		at := time.Now()
		if _, err := api.Create(ctx, c.pod(name), metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		if err := t.await(ctx, t.running, name); err != nil {
			return nil, err
		}
		start = append(start, t.running[name].Sub(at))
		at = time.Now()
		if err := api.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			return nil, err
		}
		if err := t.await(ctx, t.gone, name); err != nil {
			return nil, err
		}
		stop = append(stop, t.gone[name].Sub(at))
	}
	rows := []row{
		{"pod create to Running seen by a watch, one at a time, p50 / p99", p50p99(start[1:]), "<= 30 / 80 ms"},
		{"delete, grace 0, until gone, p50 / p99", p50p99(stop), "<= 5 ms"},
	}
	polite, err := c.polite(ctx, t)
	if err != nil {
		return nil, err
	}
	burst, err := c.burst(ctx, t)
	if err != nil {
		return nil, err
	}
	return append(append(rows, polite), burst...), nil
}

// polite deletes pods whose process exits on SIGTERM.
func (c *cluster) polite(ctx context.Context, t *podTimes) (row, error) {
	var took []time.Duration
	for i := range 20 {
		p := c.pod(fmt.Sprintf("polite-%d", i))
		p.Spec.TerminationGracePeriodSeconds = nil
		p.Spec.Containers[0].Command = []string{"sh", "-c", "trap 'exit 0' TERM; touch /tmp/set; sleep 1000000 & wait"}
		// Running is too early: the shell must have set its trap.
		p.Spec.Containers[0].StartupProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"cat", "/tmp/set"}}}}
		if _, err := c.client.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return row{}, err
		}
		if err := t.await(ctx, t.ready, p.Name); err != nil {
			return row{}, err
		}
		at := time.Now()
		if err := c.client.CoreV1().Pods("default").Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
			return row{}, err
		}
		if err := t.await(ctx, t.gone, p.Name); err != nil {
			return row{}, err
		}
		took = append(took, t.gone[p.Name].Sub(at))
	}
	return row{"delete of a pod that exits on SIGTERM, until gone, p50 / p99", p50p99(took), "<= 50 ms"}, nil
}

// burst starts 50 pods at once, execs into one, and deletes all.
func (c *cluster) burst(ctx context.Context, t *podTimes) ([]row, error) {
	api := c.client.CoreV1().Pods("default")
	var names []string
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, 50)
	for i := range 50 {
		name := fmt.Sprintf("burst-%d", i)
		names = append(names, name)
		wg.Go(func() {
			if _, err := api.Create(ctx, c.pod(name), metav1.CreateOptions{}); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return nil, err
	}
	if err := t.await(ctx, t.running, names...); err != nil {
		return nil, err
	}
	last := begin
	for _, n := range names {
		if t.running[n].After(last) {
			last = t.running[n]
		}
	}
	rows := []row{{"burst of 50 pods, all Running", millis(last.Sub(begin)) + " ms", "<= 600 ms"}}
	exec, err := c.execs(ctx, names[0])
	if err != nil {
		return nil, err
	}
	rows = append(rows, exec...)
	begin = time.Now()
	if err := api.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "bench=1"}); err != nil {
		return nil, err
	}
	if err := t.await(ctx, t.gone, names...); err != nil {
		return nil, err
	}
	last = begin
	for _, n := range names {
		if t.gone[n].After(last) {
			last = t.gone[n]
		}
	}
	return append(rows, row{"delete of 50, grace 1, processes that ignore SIGTERM", millis(last.Sub(begin)) + " ms", "<= 1300 ms"}), nil
}

func (c *cluster) execs(ctx context.Context, pod string) ([]row, error) {
	var lib, cli []time.Duration
	for range 20 {
		req := c.client.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name(pod).SubResource("exec").
			VersionedParams(&corev1.PodExecOptions{Command: []string{"true"}, Stdout: true}, scheme.ParameterCodec)
		at := time.Now()
		e, err := remotecommand.NewSPDYExecutor(c.config, "POST", req.URL())
		if err != nil {
			return nil, err
		}
		if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: discard{}}); err != nil {
			return nil, err
		}
		lib = append(lib, time.Since(at))
		at = time.Now()
		if out, err := exec.CommandContext(ctx, c.binary, "kubectl", "--kubeconfig", c.dir+"/kubeconfig", "exec", pod, "--", "true").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("kubectl exec: %w: %s", err, out)
		}
		cli = append(cli, time.Since(at))
	}
	return []row{
		{"exec by client-go, p50 / p99", p50p99(lib), "<= 8 ms"},
		{"kubectl exec true, whole command, p50 / p99", p50p99(cli), "<= 50 ms"},
	}, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
