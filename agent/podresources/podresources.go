// Package podresources tells monitors on the node which devices, CPUs and memory each
// container has: https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/#monitoring-device-plugin-resources
// (k8s.io/kubelet/pkg/apis/podresources/v1).
package podresources

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
	"k8s.io/utils/cpuset"

	"knarr.dev/knarr/agent/devices"
	"knarr.dev/knarr/agent/memory"
	"knarr.dev/knarr/agent/plugins"
	"knarr.dev/knarr/agent/podspec"
)

// Config is what a Server tells. Functions that are nil have nothing to tell.
type Config struct {
	// Pods are the node's pods with their status.
	Pods func() []*corev1.Pod

	// Devices are those of a container, AllDevices the node's healthy ones.
	Devices    func(uid, container string) []devices.Device
	AllDevices func() []devices.Device
	// CPUs are those that a container has alone, AllCPUs those that any may have so.
	CPUs    func(uid, container string) cpuset.CPUSet
	AllCPUs func() cpuset.CPUSet
	// Memory is what a container has of NUMA nodes, AllMemory what any may have.
	Memory    func(uid, container string) []memory.Block
	AllMemory func() []memory.Block
	// Claims are the devices that a container has by ResourceClaims.
	Claims func(pod *corev1.Pod, container string) []*podresourcesapi.DynamicResource
}

// Server answers. Make one with New.
type Server struct {
	podresourcesapi.UnimplementedPodResourcesListerServer
	cfg Config
}

// New returns a server.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Serve answers on a socket until ctx ends.
func (s *Server) Serve(ctx context.Context, path string) error {
	return plugins.Serve(ctx, path, func(g *grpc.Server) { podresourcesapi.RegisterPodResourcesListerServer(g, s) })
}

// List implements the service: pods that have ended are left out.
func (s *Server) List(context.Context, *podresourcesapi.ListPodResourcesRequest) (*podresourcesapi.ListPodResourcesResponse, error) {
	resp := &podresourcesapi.ListPodResourcesResponse{}
	for _, pod := range s.cfg.Pods() {
		if !over(pod) {
			resp.PodResources = append(resp.PodResources, s.pod(pod))
		}
	}
	return resp, nil
}

// Get implements the service.
func (s *Server) Get(_ context.Context, req *podresourcesapi.GetPodResourcesRequest) (*podresourcesapi.GetPodResourcesResponse, error) {
	for _, pod := range s.cfg.Pods() {
		if pod.Name == req.PodName && pod.Namespace == req.PodNamespace && !over(pod) {
			return &podresourcesapi.GetPodResourcesResponse{PodResources: s.pod(pod)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "pod %s in namespace %s not found", req.PodName, req.PodNamespace)
}

// GetAllocatableResources implements the service.
func (s *Server) GetAllocatableResources(context.Context, *podresourcesapi.AllocatableResourcesRequest) (*podresourcesapi.AllocatableResourcesResponse, error) {
	resp := &podresourcesapi.AllocatableResourcesResponse{}
	if s.cfg.AllDevices != nil {
		resp.Devices = grouped(s.cfg.AllDevices())
	}
	if s.cfg.AllCPUs != nil {
		resp.CpuIds = numbers(s.cfg.AllCPUs())
	}
	if s.cfg.AllMemory != nil {
		resp.Memory = blocks(s.cfg.AllMemory())
	}
	return resp, nil
}

func over(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// pod tells what a pod's containers have: the sidecars' as well, which run on.
func (s *Server) pod(pod *corev1.Pod) *podresourcesapi.PodResources {
	out := &podresourcesapi.PodResources{Name: pod.Name, Namespace: pod.Namespace}
	podspec.Containers(pod, func(c *corev1.Container, init bool) {
		if init && !podspec.IsSidecar(c) || podspec.ContainerKind(pod, c.Name) == "ephemeral_container" {
			return
		}
		r, uid := &podresourcesapi.ContainerResources{Name: c.Name}, string(pod.UID)
		if s.cfg.Devices != nil {
			r.Devices = grouped(s.cfg.Devices(uid, c.Name))
		}
		if s.cfg.CPUs != nil {
			r.CpuIds = numbers(s.cfg.CPUs(uid, c.Name))
		}
		if s.cfg.Memory != nil {
			r.Memory = blocks(s.cfg.Memory(uid, c.Name))
		}
		if s.cfg.Claims != nil {
			r.DynamicResources = s.cfg.Claims(pod, c.Name)
		}
		out.Containers = append(out.Containers, r)
	})
	return out
}

// grouped puts devices of one resource that are on the same nodes together.
func grouped(list []devices.Device) []*podresourcesapi.ContainerDevices {
	var out []*podresourcesapi.ContainerDevices
	var nodes [][]int
	for _, d := range list {
		i := 0
		for i < len(out) && (out[i].ResourceName != d.Resource || !slices.Equal(nodes[i], d.Nodes)) {
			i++
		}
		if i == len(out) {
			out = append(out, &podresourcesapi.ContainerDevices{ResourceName: d.Resource, Topology: places(d.Nodes)})
			nodes = append(nodes, d.Nodes)
		}
		out[i].DeviceIds = append(out[i].DeviceIds, d.ID)
	}
	return out
}

func places(nodes []int) *podresourcesapi.TopologyInfo {
	if len(nodes) == 0 {
		return nil
	}
	t := &podresourcesapi.TopologyInfo{}
	for _, n := range nodes {
		t.Nodes = append(t.Nodes, &podresourcesapi.NUMANode{ID: int64(n)})
	}
	return t
}

func numbers(set cpuset.CPUSet) []int64 {
	var out []int64
	for _, n := range set.List() {
		out = append(out, int64(n))
	}
	return out
}

func blocks(list []memory.Block) []*podresourcesapi.ContainerMemory {
	var out []*podresourcesapi.ContainerMemory
	for _, b := range list {
		out = append(out, &podresourcesapi.ContainerMemory{MemoryType: string(b.Type), Size: uint64(b.Size), Topology: places(b.Nodes.Nodes())})
	}
	return out
}
