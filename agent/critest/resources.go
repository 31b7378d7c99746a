package critest

import (
	"context"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources implements the runtime service; what is zero stays.
func (r *Runtime) UpdateContainerResources(_ context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := r.call("UpdateContainerResources", req.ContainerId); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	cfg := proto.Clone(c.Config).(*runtimeapi.ContainerConfig)
	if cfg.Linux == nil {
		cfg.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if cfg.Linux.Resources == nil {
		cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{}
	}
	proto.Merge(cfg.Linux.Resources, req.Linux)
	c.Config = cfg
	close(r.changed)
	r.changed = make(chan struct{})
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// CPUs are those on which the newest container of a pod may run, and whether there
// is one.
func (r *Runtime) CPUs(pod string) (string, bool) {
	list := r.Containers("")
	for i := len(list) - 1; i >= 0; i-- {
		if c := list[i]; c.Config.Labels["io.kubernetes.pod.name"] == pod {
			return c.Config.Linux.GetResources().GetCpusetCpus(), true
		}
	}
	return "", false
}

// ReopenContainerLog implements the runtime service; the fake writes no logs.
func (r *Runtime) ReopenContainerLog(_ context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return &runtimeapi.ReopenContainerLogResponse{}, r.call("ReopenContainerLog", req.ContainerId)
}
