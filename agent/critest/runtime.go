package critest

import (
	"context"
	"fmt"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Version implements the runtime service.
func (r *Runtime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "critest", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

// Status implements the runtime service.
func (r *Runtime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	if err := r.call("Status", ""); err != nil {
		return nil, err
	}
	return &runtimeapi.StatusResponse{RuntimeHandlers: r.Handlers, Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: true}}}}, nil
}

// RunPodSandbox implements the runtime service.
func (r *Runtime) RunPodSandbox(_ context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := r.call("RunPodSandbox", req.Config.Metadata.Name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	id, ip := fmt.Sprintf("s%d", r.seq), r.IP
	if ip == "" {
		ip = "10.9.0.1"
	}
	r.sandboxes[id] = &runtimeapi.PodSandboxStatus{Id: id, Metadata: req.Config.Metadata, State: runtimeapi.PodSandboxState_SANDBOX_READY,
		CreatedAt: time.Now().UnixNano(), Labels: req.Config.Labels, Annotations: req.Config.Annotations,
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: ip}}
	r.configs[id] = req.Config
	r.send(id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, r.sandboxes[id], nil)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox implements the runtime service.
func (r *Runtime) StopPodSandbox(_ context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := r.call("StopPodSandbox", req.PodSandboxId); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[req.PodSandboxId]
	if s == nil {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	for _, c := range r.containers {
		if c.Sandbox == s.Id {
			r.exit(c, 137, "")
		}
	}
	down := proto.Clone(s).(*runtimeapi.PodSandboxStatus)
	down.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	r.sandboxes[s.Id] = down
	r.send(s.Id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, down, nil)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox implements the runtime service.
func (r *Runtime) RemovePodSandbox(_ context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := r.call("RemovePodSandbox", req.PodSandboxId); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.containers, func(_ string, c *Container) bool { return c.Sandbox == req.PodSandboxId })
	delete(r.sandboxes, req.PodSandboxId)
	r.send(req.PodSandboxId, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, nil, nil)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus implements the runtime service.
func (r *Runtime) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[req.PodSandboxId]
	if s == nil {
		return nil, notFound("sandbox", req.PodSandboxId)
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: s}, nil
}

func selected(want, have map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// ListPodSandbox implements the runtime service.
func (r *Runtime) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range r.sandboxes {
		if selected(req.GetFilter().GetLabelSelector(), s.Labels) {
			resp.Items = append(resp.Items, &runtimeapi.PodSandbox{Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, Labels: s.Labels})
		}
	}
	return resp, nil
}

// CreateContainer implements the runtime service.
func (r *Runtime) CreateContainer(_ context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := r.call("CreateContainer", req.Config.Metadata.Name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	id := fmt.Sprintf("c%d", r.seq)
	r.containers[id] = &Container{Sandbox: req.PodSandboxId, Config: req.Config, Status: &runtimeapi.ContainerStatus{
		Id: id, Metadata: req.Config.Metadata, State: runtimeapi.ContainerState_CONTAINER_CREATED, CreatedAt: time.Now().UnixNano(),
		Image: req.Config.Image, ImageRef: "sha256:" + req.Config.Image.Image, Labels: req.Config.Labels, Annotations: req.Config.Annotations}}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer implements the runtime service.
func (r *Runtime) StartContainer(_ context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[req.ContainerId]
	r.mu.Unlock()
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	if err := r.call("StartContainer", c.Config.Metadata.Name); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.exit(c, 128, "StartError")
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	st := clone(c.Status)
	st.State, st.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	c.Status = st
	r.send(st.Id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, r.sandboxes[c.Sandbox], st)
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer implements the runtime service; the container ends with 143.
func (r *Runtime) StopContainer(_ context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[req.ContainerId]
	r.mu.Unlock()
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	if err := r.call("StopContainer", c.Config.Metadata.Name); err != nil {
		return nil, err
	}
	if r.OnStop != nil {
		r.OnStop(c.Config.Metadata.Name, req.Timeout)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exit(c, 143, "")
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer implements the runtime service.
func (r *Runtime) RemoveContainer(_ context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := r.call("RemoveContainer", req.ContainerId); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, req.ContainerId)
	r.send(req.ContainerId, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, nil, nil)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers implements the runtime service.
func (r *Runtime) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	if err := r.call("ListContainers", ""); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range r.containers {
		if selected(req.GetFilter().GetLabelSelector(), c.Status.Labels) {
			resp.Containers = append(resp.Containers, &runtimeapi.Container{Id: c.Status.Id, PodSandboxId: c.Sandbox, Metadata: c.Status.Metadata,
				State: c.Status.State, Image: c.Status.Image, ImageRef: c.Status.ImageRef, CreatedAt: c.Status.CreatedAt, Labels: c.Status.Labels, Annotations: c.Status.Annotations})
		}
	}
	return resp, nil
}

// ContainerStatus implements the runtime service.
func (r *Runtime) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	return &runtimeapi.ContainerStatusResponse{Status: c.Status}, nil
}

// ExecSync implements the runtime service.
func (r *Runtime) ExecSync(_ context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	r.mu.Lock()
	c := r.containers[req.ContainerId]
	r.mu.Unlock()
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	if err := r.call("ExecSync", c.Config.Metadata.Name); err != nil {
		return nil, err
	}
	if r.OnExec == nil {
		return &runtimeapi.ExecSyncResponse{}, nil
	}
	code, out := r.OnExec(c.Config.Metadata.Name, req.Cmd)
	return &runtimeapi.ExecSyncResponse{ExitCode: code, Stdout: []byte(out)}, nil
}

// GetContainerEvents implements the runtime service.
func (r *Runtime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s runtimeapi.RuntimeService_GetContainerEventsServer) error {
	if r.NoEvents {
		return status.Error(codes.Unimplemented, "no events")
	}
	ch := make(chan *runtimeapi.ContainerEventResponse, 4096)
	r.mu.Lock()
	r.streams[ch] = true
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	for {
		select {
		case ev, ok := <-ch:
			if !ok {
				return status.Error(codes.Unavailable, "the stream was broken")
			}
			if err := s.Send(ev); err != nil {
				return err
			}
		case <-s.Context().Done():
			r.mu.Lock()
			delete(r.streams, ch)
			r.mu.Unlock()
			return nil
		}
	}
}

// ImageStatus implements the image service.
func (r *Runtime) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := r.call("ImageStatus", req.Image.Image); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.ImageStatusResponse{Image: r.images[req.Image.Image]}, nil
}

// PullImage implements the image service: every image exists unless Fail objects.
func (r *Runtime) PullImage(_ context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	r.mu.Lock()
	r.pulls = append(r.pulls, req)
	r.mu.Unlock()
	if err := r.call("PullImage", req.Image.Image); err != nil {
		return nil, err
	}
	if r.OnPull != nil {
		if err := r.OnPull(req); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.images[req.Image.Image] == nil {
		r.images[req.Image.Image] = &runtimeapi.Image{Id: "sha256:" + req.Image.Image, RepoTags: []string{req.Image.Image}, Size: 1000}
	}
	return &runtimeapi.PullImageResponse{ImageRef: r.images[req.Image.Image].Id}, nil
}

// ListImages implements the image service.
func (r *Runtime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ListImagesResponse{}
	for _, i := range r.images {
		resp.Images = append(resp.Images, i)
	}
	return resp, nil
}

// RemoveImage implements the image service.
func (r *Runtime) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := r.call("RemoveImage", req.Image.Image); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.images, func(k string, i *runtimeapi.Image) bool { return k == req.Image.Image || i.Id == req.Image.Image })
	return &runtimeapi.RemoveImageResponse{}, nil
}
