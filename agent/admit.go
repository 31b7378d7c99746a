package agent

import (
	"fmt"
	"maps"
	"math"
	"strings"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"knarr.dev/knarr/agent/eviction"
	"knarr.dev/knarr/agent/node"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/status"
)

func unimplemented(err error) bool { return grpcstatus.Code(err) == codes.Unimplemented }

// admit returns the check that a new pod passes before anything of it is made.
func (p *pods) admit(n *node.Reporter) func(*corev1.Pod) *status.Terminal {
	return func(pod *corev1.Pod) *status.Terminal {
		// One at a time: of two pods that do not fit together the first gets in.
		p.admission.Lock()
		defer p.admission.Unlock()
		t := p.refuses(pod)
		if err := podspec.ForbiddenSysctl(pod, p.sysctls); t == nil && err != nil {
			t = &status.Terminal{Phase: corev1.PodFailed, Reason: "SysctlForbidden", Message: "Pod was rejected: " + err.Error()}
		}
		if t == nil {
			others := p.others(pod)
			have := p.without(n.Node())
			if t = Admit(pod, others, have); t != nil && p.preempt(pod, others, have, t) {
				t = nil
			}
		}
		if t == nil && p.resources != nil {
			reason, message := p.resources.Admit(pod)
			if p.deps.Metrics.Aligned(reason); reason != "" {
				t = &status.Terminal{Phase: corev1.PodFailed, Reason: reason, Message: message}
			}
		}
		if t == nil {
			p.admitted[string(pod.UID)] = true
		}
		return t
	}
}

// without is the node without the resources that plugins share out: whether there is
// enough of them is theirs to say.
func (p *pods) without(n *corev1.Node) *corev1.Node {
	if n == nil || p.managed == nil {
		return n
	}
	managed, _ := p.managed()
	if len(managed) == 0 {
		return n
	}
	out := *n
	out.Status.Allocatable = maps.Clone(n.Status.Allocatable)
	for name := range managed {
		out.Status.Allocatable[name] = *resource.NewQuantity(math.MaxInt32, resource.DecimalSI)
	}
	return &out
}

// preempt has pods that matter less give way to a critical one for which there is no
// room; false if that does not help.
func (p *pods) preempt(pod *corev1.Pod, others []*corev1.Pod, n *corev1.Node, t *status.Terminal) bool {
	if !podspec.Critical(pod) || !strings.HasPrefix(t.Reason, "OutOf") {
		return false
	}
	victims := eviction.Victims(pod, others, n.Status.Allocatable, func(o *corev1.Pod) bool { return !podspec.Critical(o) })
	actors := p.all()
	for _, v := range victims {
		const why = "Preempted in order to admit critical pod"
		now := int64(1)
		p.deps.Recorder.Event(v, corev1.EventTypeWarning, "Preempting", why)
		p.deps.Metrics.Preempted(strings.TrimPrefix(t.Reason, "OutOf"))
		delete(p.admitted, string(v.UID)) // its room is the other's
		if a := actors[string(v.UID)]; a != nil {
			a.Evict(status.Terminal{Phase: corev1.PodFailed, Reason: "Preempting", Message: why, Disruption: terminationByKubelet, Grace: &now})
		}
	}
	return len(victims) > 0
}

// resizable returns the check that a change of a pod's requests passes.
func (p *pods) resizable(n *node.Reporter) func(*corev1.Pod) *status.Waiting {
	return func(pod *corev1.Pod) *status.Waiting {
		p.admission.Lock()
		defer p.admission.Unlock()
		if p.pinned != nil {
			if manager := p.pinned(string(pod.UID)); manager != "" {
				return &status.Waiting{Reason: corev1.PodReasonInfeasible, Message: "Resize is infeasible for Guaranteed Pods alongside " + manager + " static policy"}
			}
		}
		return Resizable(pod, p.others(pod), n.Node())
	}
}

// Resizable decides whether a node has room for a pod of its own as it is wanted
// now: nil, Deferred until others go, or Infeasible.
func Resizable(pod *corev1.Pod, others []*corev1.Pod, n *corev1.Node) *status.Waiting {
	if n == nil {
		return nil
	}
	opts := resourcehelper.PodResourcesOptions{}
	for name, want := range resourcehelper.PodRequests(pod, opts) {
		have, known := n.Status.Allocatable[name]
		if !known {
			continue
		}
		number := func(q resource.Quantity) int64 {
			if name == corev1.ResourceCPU {
				return q.MilliValue()
			}
			return q.Value()
		}
		if want.Cmp(have) > 0 {
			return &status.Waiting{Reason: corev1.PodReasonInfeasible, Message: fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", name, number(want), number(have))}
		}
		used := resource.Quantity{}
		for _, o := range others {
			used.Add(resourcehelper.PodRequests(o, opts)[name])
		}
		total := used.DeepCopy()
		total.Add(want)
		if total.Cmp(have) > 0 {
			return &status.Waiting{Reason: corev1.PodReasonDeferred, Message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, number(want), number(used), number(have))}
		}
	}
	return nil
}

// others are the admitted pods beside pod that have not ended.
func (p *pods) others(pod *corev1.Pod) []*corev1.Pod {
	var others []*corev1.Pod
	for uid, a := range p.all() {
		if uid == string(pod.UID) || !p.admitted[uid] {
			continue
		}
		if o, _ := a.Snapshot(); o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed {
			others = append(others, o)
		}
	}
	return others
}

// Admit decides whether a pod may run on a node beside others; nil admits. It is
// the last word after the scheduler's, which may have been bypassed.
func Admit(pod *corev1.Pod, others []*corev1.Pod, n *corev1.Node) *status.Terminal {
	refuse := func(reason, message string) *status.Terminal {
		return &status.Terminal{Phase: corev1.PodFailed, Reason: reason, Message: message}
	}
	if n == nil {
		return nil
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(n); err != nil || !ok {
		return refuse("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed")
	}
	if len(n.Status.Allocatable) > 0 {
		opts := resourcehelper.PodResourcesOptions{}
		used := corev1.ResourceList{}
		for _, o := range others {
			for name, q := range resourcehelper.PodRequests(o, opts) {
				sum := used[name]
				sum.Add(q)
				used[name] = sum
			}
		}
		if pods := n.Status.Allocatable.Pods().Value(); pods > 0 && int64(len(others)) >= pods {
			return refuse("OutOfpods", fmt.Sprintf("Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: %d, capacity: %d", len(others), pods))
		}
		for name, want := range resourcehelper.PodRequests(pod, opts) {
			have, known := n.Status.Allocatable[name]
			if want.IsZero() || !known && !strings.Contains(string(name), "/") {
				continue
			}
			in := used[name]
			total := in.DeepCopy()
			total.Add(want)
			if total.Cmp(have) <= 0 {
				continue
			}
			value := func(v interface {
				Value() int64
				MilliValue() int64
			}) int64 {
				if name == corev1.ResourceCPU {
					return v.MilliValue()
				}
				return v.Value()
			}
			return refuse("OutOf"+string(name), fmt.Sprintf("Pod was rejected: Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
				name, value(&want), value(&in), value(&have)))
		}
	}
	taken := map[string]bool{}
	for _, o := range others {
		for _, k := range hostPorts(o) {
			taken[k] = true
		}
	}
	for _, k := range hostPorts(pod) {
		proto, rest, _ := strings.Cut(k, "/")
		ip, port, _ := strings.Cut(rest, "|")
		for t := range taken {
			tp, tr, _ := strings.Cut(t, "/")
			ti, tport, _ := strings.Cut(tr, "|")
			if tp == proto && tport == port && (ti == ip || ti == "0.0.0.0" || ip == "0.0.0.0") {
				return refuse("NodePorts", "Pod was rejected: Predicate NodePorts failed")
			}
		}
	}
	return nil
}

// hostPorts lists protocol/ip|port of every port that a pod takes on the node.
func hostPorts(pod *corev1.Pod) []string {
	var out []string
	podspec.Containers(pod, func(c *corev1.Container, init bool) {
		if init && !podspec.IsSidecar(c) {
			return
		}
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			proto, ip := p.Protocol, p.HostIP
			if proto == "" {
				proto = corev1.ProtocolTCP
			}
			if ip == "" {
				ip = "0.0.0.0"
			}
			out = append(out, fmt.Sprintf("%s/%s|%d", proto, ip, p.HostPort))
		}
	})
	return out
}
