package node

import (
	"context"
	"maps"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/eviction"
)

// What is kept back from pods against pressure, by Kubernetes' defaults, and what is shown.
const (
	memoryFloor   = 100 << 20 // bytes available
	maxImages     = 50        // shown in the node's status
	maxImageNames = 5
)

func quantity(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.DecimalSI) }

// allocatable is the capacity less what is kept back against pressure.
func allocatable(capacity, reserved corev1.ResourceList) corev1.ResourceList {
	out := capacity.DeepCopy()
	for name, r := range reserved {
		if q, ok := out[name]; ok && q.Cmp(r) > 0 {
			q.Sub(r)
			out[name] = q
		} else if ok {
			out[name] = *resource.NewQuantity(0, q.Format)
		}
	}
	for name, q := range capacity {
		if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) && !q.IsZero() {
			memory := out[corev1.ResourceMemory]
			memory.Sub(q) // it is no ordinary memory any more
			out[corev1.ResourceMemory] = memory
		}
	}
	if q, ok := out[corev1.ResourceMemory]; ok && q.Value() > 2*memoryFloor && reserved.Memory().Value() < memoryFloor {
		q.Sub(*resource.NewQuantity(memoryFloor, resource.BinarySI))
		out[corev1.ResourceMemory] = q
	}
	if q, ok := out[corev1.ResourceEphemeralStorage]; ok {
		floor := eviction.Default().Hard[eviction.NodeFsAvailable]
		q.Sub(*resource.NewQuantity(floor.Of(capacity.StorageEphemeral().Value()), resource.BinarySI))
		out[corev1.ResourceEphemeralStorage] = q
	}
	return out
}

// observe looks at the machine and the runtime.
func (r *Reporter) observe(ctx context.Context) corev1.NodeStatus {
	s := corev1.NodeStatus{
		Capacity: r.cfg.Capacity, Allocatable: r.allocatable, NodeInfo: r.cfg.Info,
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: r.cfg.Port}},
	}
	if r.cfg.Extended != nil {
		more, free := r.cfg.Extended()
		s.Capacity, s.Allocatable = s.Capacity.DeepCopy(), s.Allocatable.DeepCopy()
		maps.Copy(s.Capacity, more)
		maps.Copy(s.Allocatable, free)
	}
	s.NodeInfo.KubeletVersion = r.cfg.Version
	for _, ip := range r.cfg.IPs {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: r.cfg.Name})
	if v, err := r.cfg.CRI.Runtime.Version(ctx, &runtimeapi.VersionRequest{}); err == nil {
		s.NodeInfo.ContainerRuntimeVersion = v.RuntimeName + "://" + v.RuntimeVersion
	}
	s.Images = r.images(ctx)
	runtime, err := r.cfg.CRI.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	s.RuntimeHandlers, s.Features = features(runtime)
	s.Conditions = append(r.pressures(), ready(runtime, err, r.cfg.Ending != nil && r.cfg.Ending()))
	return s
}

// features are what the runtime can do for pods, by handler and altogether.
func features(runtime *runtimeapi.StatusResponse) ([]corev1.NodeRuntimeHandler, *corev1.NodeFeatures) {
	var handlers []corev1.NodeRuntimeHandler
	for _, h := range runtime.GetRuntimeHandlers() {
		n := corev1.NodeRuntimeHandler{Name: h.Name}
		if f := h.Features; f != nil {
			n.Features = &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &f.RecursiveReadOnlyMounts, UserNamespaces: &f.UserNamespaces}
		}
		handlers = append(handlers, n)
	}
	f := runtime.GetFeatures()
	if f == nil {
		return handlers, nil
	}
	return handlers, &corev1.NodeFeatures{SupplementalGroupsPolicy: &f.SupplementalGroupsPolicy}
}

func condition(kind corev1.NodeConditionType, bad bool, badReason, badMessage, reason, message string) corev1.NodeCondition {
	c := corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message}
	if bad {
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, badReason, badMessage
	}
	return c
}

// pressures are the conditions of what the node is short of.
func (r *Reporter) pressures() []corev1.NodeCondition {
	var has map[corev1.NodeConditionType]bool
	if r.cfg.Pressure != nil {
		has = r.cfg.Pressure()
	}
	return []corev1.NodeCondition{
		condition(corev1.NodeMemoryPressure, has[corev1.NodeMemoryPressure],
			"KubeletHasInsufficientMemory", "kubelet has insufficient memory available",
			"KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		condition(corev1.NodeDiskPressure, has[corev1.NodeDiskPressure],
			"KubeletHasDiskPressure", "kubelet has disk pressure",
			"KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		condition(corev1.NodePIDPressure, has[corev1.NodePIDPressure],
			"KubeletHasInsufficientPID", "kubelet has insufficient PID available",
			"KubeletHasSufficientPID", "kubelet has sufficient PID available"),
	}
}

// ready tells from the runtime's answer whether it and its network are, and whether
// the machine is there to stay.
func ready(resp *runtimeapi.StatusResponse, err error, ending bool) corev1.NodeCondition {
	c := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	var problems []string
	if err != nil {
		problems = append(problems, "container runtime is down")
	}
	for _, rc := range resp.GetStatus().GetConditions() {
		switch {
		case rc.Status:
		case rc.Type == "NetworkReady":
			problems = append(problems, "container runtime network not ready: NetworkReady=false reason:"+rc.Reason+" message:"+rc.Message)
		case rc.Type == "RuntimeReady":
			problems = append(problems, "container runtime not ready: RuntimeReady=false reason:"+rc.Reason+" message:"+rc.Message)
		}
	}
	if ending {
		problems = append(problems, "node is shutting down")
	}
	if len(problems) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "KubeletNotReady", "["+strings.Join(problems, ", ")+"]"
		if len(problems) == 1 {
			c.Message = problems[0]
		}
	}
	return c
}

// images lists the largest images.
func (r *Reporter) images(ctx context.Context) []corev1.ContainerImage {
	resp, err := r.cfg.CRI.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil
	}
	var out []corev1.ContainerImage
	for _, i := range resp.Images {
		names := append(slices.Clone(i.RepoDigests), i.RepoTags...)
		if len(names) > maxImageNames {
			names = names[:maxImageNames]
		}
		out = append(out, corev1.ContainerImage{Names: names, SizeBytes: int64(i.Size)})
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].SizeBytes > out[j].SizeBytes })
	return out[:min(len(out), maxImages)]
}

// merge puts what was observed over the node's status: conditions keep the time
// of their last transition, and those of others stay.
func (r *Reporter) merge(n *corev1.Node, want corev1.NodeStatus) corev1.NodeStatus {
	out := *n.Status.DeepCopy()
	out.Capacity, out.Allocatable, out.NodeInfo = want.Capacity, want.Allocatable, want.NodeInfo
	// Extended resources that others announced stay.
	for name, q := range n.Status.Capacity {
		if _, ours := out.Capacity[name]; !ours && strings.Contains(string(name), "/") {
			out.Capacity, out.Allocatable = out.Capacity.DeepCopy(), out.Allocatable.DeepCopy()
			out.Capacity[name] = q
			if _, ok := out.Allocatable[name]; !ok {
				out.Allocatable[name] = q
			}
		}
	}
	if len(want.RuntimeHandlers) > 0 { // else the runtime is away, not another
		out.RuntimeHandlers, out.Features = want.RuntimeHandlers, want.Features
	}
	out.Addresses, out.DaemonEndpoints, out.Images = want.Addresses, want.DaemonEndpoints, want.Images
	now := metav1.NewTime(r.cfg.Clock.Now().Truncate(1e9))
	for _, c := range want.Conditions {
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		i := slices.IndexFunc(out.Conditions, func(o corev1.NodeCondition) bool { return o.Type == c.Type })
		if i < 0 {
			out.Conditions = append(out.Conditions, c)
			continue
		}
		if out.Conditions[i].Status == c.Status {
			c.LastTransitionTime = out.Conditions[i].LastTransitionTime
		}
		out.Conditions[i] = c
	}
	return out
}
