// Package usage measures what a node, its pods and their containers use, in the
// terms of the kubelet's stats/v1alpha1 summary.
//
// Nothing is measured while nobody asks. A rate needs two measurements: the one
// before the last serves when it is between a second and a minute old; else the
// Meter measures twice, half a second apart, so that the first answer after a quiet
// time takes so long. A container that began in between counts from its start.
// Answers younger than a second are given again.
package usage

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/cri"
)

const (
	fresh     = time.Second            // an answer is given again for so long
	minWindow = 500 * time.Millisecond // between two measurements of a rate
	maxWindow = time.Minute
)

// Config is what a Meter needs.
type Config struct {
	NodeName string
	CRI      *cri.Client
	Pods     func() []*corev1.Pod
	// Volumes lists the directories of a pod's volumes; LogRoot holds the pods' logs; Root
	// is on the node's file system.
	Volumes func(uid string) []string
	// Ready are the paths of a pod's volumes by name; those of claims may be anywhere. Nil:
	// claims are not measured.
	Ready         func(uid string) map[string]string
	LogRoot, Root string
	Clock         clock.Clock
}

// Meter measures. Make one with New.
type Meter struct {
	cfg  Config
	mu   sync.Mutex
	last *Reading
}

// Reading is one measurement. It is shared: nobody may change it.
type Reading struct {
	stats.Summary
	// Window is the time over which rates were taken; it ends at At.
	Window time.Duration
	At     time.Time

	cpu map[string]uint64 // nanoseconds since the start, by key
	ids map[*stats.ContainerStats]string
}

// New returns a meter.
func New(cfg Config) *Meter { return &Meter{cfg: cfg} }

// Read measures CPU and memory. It may take half a second: see the package.
func (m *Meter) Read(ctx context.Context) (*Reading, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Clock.Now()
	if m.last != nil && now.Sub(m.last.At) < fresh {
		return m.last, nil
	}
	base := m.last
	next, err := m.take(ctx)
	if err != nil {
		return nil, err
	}
	if base == nil || now.Sub(base.At) > maxWindow {
		base = next
		t := m.cfg.Clock.NewTimer(minWindow)
		defer t.Stop()
		select {
		case <-t.C():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if next, err = m.take(ctx); err != nil {
			return nil, err
		}
	}
	next.since(base)
	m.last = next
	return next, nil
}

// take measures without rates.
func (m *Meter) take(ctx context.Context) (*Reading, error) {
	boxes, err := m.sandboxes(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the runtime's statistics: %w", err)
	}
	at := m.cfg.Clock.Now()
	now := metav1.NewTime(at)
	r := &Reading{At: at, cpu: map[string]uint64{}, ids: map[*stats.ContainerStats]string{}}
	r.Node = m.node(now)
	r.note("", r.Node.CPU)
	r.Pods = []stats.PodStats{}
	for _, p := range m.cfg.Pods() {
		ps := stats.PodStats{PodRef: stats.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}, Containers: []stats.ContainerStats{}}
		if p.Status.StartTime != nil {
			ps.StartTime = *p.Status.StartTime
		}
		if box := boxes[string(p.UID)]; box != nil {
			r.pod(&ps, p, box)
		}
		r.Pods = append(r.Pods, ps)
	}
	r.Node.SystemContainers = r.systemContainers()
	return r, nil
}

// sandboxes measures all pods, by UID. A runtime that measures containers alone
// serves too, and so does one that cannot measure pods when one of them has ended.
func (m *Meter) sandboxes(ctx context.Context) (map[string]*runtimeapi.LinuxPodSandboxStats, error) {
	out := map[string]*runtimeapi.LinuxPodSandboxStats{}
	resp, err := m.cfg.CRI.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		list, err := m.cfg.CRI.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		if err != nil {
			return nil, err
		}
		for _, c := range list.Stats {
			uid := c.GetAttributes().GetLabels()[podspec.LabelPodUID]
			if out[uid] == nil {
				out[uid] = &runtimeapi.LinuxPodSandboxStats{}
			}
			out[uid].Containers = append(out[uid].Containers, c)
		}
		return out, nil
	}
	for _, s := range resp.Stats {
		if s.Linux != nil {
			out[s.GetAttributes().GetLabels()[podspec.LabelPodUID]] = s.Linux
		}
	}
	return out, nil
}

// pod fills in what a pod uses.
func (r *Reading) pod(out *stats.PodStats, pod *corev1.Pod, box *runtimeapi.LinuxPodSandboxStats) {
	began := map[string]metav1.Time{}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for _, st := range list {
			if st.State.Running != nil {
				began[st.Name] = st.State.Running.StartedAt
			}
		}
	}
	out.Containers = make([]stats.ContainerStats, 0, len(box.Containers))
	for _, c := range box.Containers {
		name := c.GetAttributes().GetLabels()[podspec.LabelContainer]
		cs := stats.ContainerStats{Name: name, StartTime: began[name], CPU: cpu(c.Cpu), Memory: memory(c.Memory), IO: inputOutput(c.Io), Swap: swap(c.Swap)}
		if fs := c.WritableLayer; fs != nil {
			cs.Rootfs = &stats.FsStats{Time: metav1.NewTime(time.Unix(0, fs.Timestamp)), UsedBytes: value(fs.UsedBytes), InodesUsed: value(fs.InodesUsed)}
		}
		out.CPU, out.Memory, out.Swap = addCPU(out.CPU, cs.CPU), addMemory(out.Memory, cs.Memory), addSwap(out.Swap, cs.Swap)
		out.Containers = append(out.Containers, cs)
		key := c.GetAttributes().GetId()
		r.ids[&out.Containers[len(out.Containers)-1]] = key
		r.note(key, cs.CPU)
	}
	// The pod's own group counts what ended containers used, too.
	if box.Cpu != nil {
		out.CPU = cpu(box.Cpu)
	}
	if box.Memory != nil {
		out.Memory = memory(box.Memory)
	}
	out.IO = inputOutput(box.Io)
	r.note(out.PodRef.UID, out.CPU)
	if n := box.Process; n != nil {
		out.ProcessStats = &stats.ProcessStats{ProcessCount: value(n.ProcessCount)}
	}
	out.Network = network(box.Network)
}

func (r *Reading) note(key string, c *stats.CPUStats) {
	if c != nil && c.UsageCoreNanoSeconds != nil {
		r.cpu[key] = *c.UsageCoreNanoSeconds
	}
}

// since fills in the rates since an earlier reading.
func (r *Reading) since(base *Reading) {
	r.Window = r.At.Sub(base.At)
	r.rate(base, "", r.Node.CPU, time.Time{})
	for i := range r.Pods {
		p := &r.Pods[i]
		r.rate(base, p.PodRef.UID, p.CPU, p.StartTime.Time)
		for j := range p.Containers {
			c := &p.Containers[j]
			r.rate(base, r.ids[c], c.CPU, c.StartTime.Time)
		}
	}
	r.ids = nil
	for i := range r.Node.SystemContainers {
		c := &r.Node.SystemContainers[i]
		r.rate(base, "system/"+c.Name, c.CPU, time.Time{})
	}
}

// rate computes one rate: over the window, or since began for what is younger.
func (r *Reading) rate(base *Reading, key string, c *stats.CPUStats, began time.Time) {
	if c == nil || c.UsageCoreNanoSeconds == nil {
		return
	}
	window := r.Window
	before, known := base.cpu[key]
	if !known {
		if window = r.At.Sub(began); began.IsZero() || window <= 0 {
			return
		}
		// Start times are whole seconds.
		window = max(window, fresh)
	}
	if window <= 0 || *c.UsageCoreNanoSeconds < before {
		return
	}
	n := uint64(float64(*c.UsageCoreNanoSeconds-before) / window.Seconds())
	c.UsageNanoCores = &n
}
