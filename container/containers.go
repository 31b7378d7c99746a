package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
	"knarr.dev/knarr/container/image"
	"knarr.dev/knarr/container/oci"
)

// container is one container at run time. The record's mutable fields and the
// pointers are guarded by mu; op serialises start, stop and remove.
type container struct {
	op sync.Mutex
	mu sync.RWMutex
	containerRecord
	pod    *pod
	image  *image.Image
	group  cgroup.Group
	child  *oci.Child
	output *output
	layer  layerUse
	exited chan struct{} // closed once the exit is recorded
	gone   bool
}

func (c *container) config() *runtimeapi.ContainerConfig { return c.Config.m }

func (c *container) security() *runtimeapi.LinuxContainerSecurityContext {
	return c.config().GetLinux().GetSecurityContext()
}

// CreateContainer prepares everything that does not need the process.
func (s *Server) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	conf := req.GetConfig()
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	p.mu.RLock()
	ready := p.Ready
	p.mu.RUnlock()
	if !ready {
		return nil, fmt.Errorf("%w: sandbox %s is not ready", errState, p.ID)
	}
	if conf.GetMetadata().GetName() == "" {
		return nil, fmt.Errorf("%w: the container's metadata need a name", errInvalid)
	}
	hooks, err := addDevices(conf, s.cfg.DeviceDirs)
	if err != nil {
		return nil, err
	}
	img, err := s.images.Get(conf.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	c := &container{
		containerRecord: containerRecord{
			ID: newID(), Pod: p.ID, Config: message[*runtimeapi.ContainerConfig]{conf}, ImageID: img.ID, ImageRef: img.ID,
			Created: s.cfg.Now(), Boot: s.boot, TTY: conf.GetTty(), Stop: img.Config.StopSignal, Hooks: hooks,
		},
		pod: p, image: img, exited: make(chan struct{}),
	}
	if d := img.DigestFor(conf.GetImage().GetUserSpecifiedImage(), conf.GetImage().GetImage()); d != "" {
		c.ImageRef = d
	}
	if conf.GetLogPath() != "" {
		c.LogPath = filepath.Join(p.config().GetLogDirectory(), conf.GetLogPath())
	}
	c.Cgroup = filepath.Join(p.Cgroup, c.ID)
	c.group = s.layout.Group(c.Cgroup)
	name := containerName(p, conf.GetMetadata())
	if err := s.reserve(name, c.ID); err != nil {
		return nil, err
	}
	if err := s.create(c); err != nil {
		err = fmt.Errorf("creating container %s: %w", conf.GetMetadata().GetName(), err)
		s.release(name)
		return nil, errors.Join(err, s.clear(context.WithoutCancel(ctx), c))
	}
	s.mu.Lock()
	s.containers[c.ID] = c
	s.mu.Unlock()
	s.emit(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, c.ID, p)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.ID}, nil
}

func containerName(p *pod, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("container/%s/%s/%d", p.ID, m.GetName(), m.GetAttempt())
}

func (s *Server) create(c *container) error {
	if err := checkMounts(c.config().GetMounts(), c.pod.users); err != nil {
		return err
	}
	user, err := s.resolveUser(c)
	if err != nil {
		return err
	}
	c.User = user
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(s.containerDir(c.ID), d), 0o755); err != nil {
			return fmt.Errorf("making the writable layer: %w", err)
		}
	}
	s.at("container: folders made")
	c.Unfinished = true
	if err := save(s.containerRecord(c.ID), &c.containerRecord); err != nil {
		return err
	}
	s.at("container: noted")
	if err := c.group.Create(); err != nil {
		return err
	}
	s.at("container: group made")
	if r := c.config().GetLinux().GetResources(); r != nil {
		if err := c.group.Apply(limits(r)); err != nil {
			return err
		}
	}
	if !c.security().GetPrivileged() {
		extra, err := deviceRules(c.config().GetDevices())
		if err != nil {
			return err
		}
		if err := c.group.AllowDevices(extra); err != nil {
			return err
		}
	}
	s.at("container: limited")
	c.Unfinished = false
	if err := save(s.containerRecord(c.ID), &c.containerRecord); err != nil {
		return err
	}
	s.at("container: created")
	return nil
}

// clear removes all that belongs to a container without a process.
func (s *Server) clear(ctx context.Context, c *container) error {
	var errs []error
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"forgotten by its executor", func() error { return s.forget(ctx, c) }},
		{"group removed", func() error { return c.group.Remove(ctx) }},
		{"descriptors dropped", func() error { return s.holder.Drop(c.ID) }},
		{"pipes removed", func() error { return os.RemoveAll(s.pipeDir(c.ID)) }},
		{"folders removed", func() error { return os.RemoveAll(s.containerDir(c.ID)) }},
	} {
		errs = append(errs, step.do())
		s.at("container: " + step.name)
	}
	return errors.Join(errs...)
}

// forget has the executor remove what it keeps of a container without a process. That
// its poststop hooks fail keeps nobody from going on.
func (s *Server) forget(ctx context.Context, c *container) error {
	err := c.pod.executor.Delete(ctx, c.ID)
	var hook *oci.HookError
	if ctx.Err() == nil && errors.As(err, &hook) {
		s.cfg.Log.Warn("after a container's end", "container", c.ID, "error", err)
		return nil
	}
	return err
}

// RemoveContainer removes a container, killing it first if it runs.
func (s *Server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.container(req.GetContainerId())
	if errors.Is(err, errNotFound) {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.removeContainer(ctx, c); err != nil {
		return nil, fmt.Errorf("removing container %s: %w", c.ID, err)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *Server) removeContainer(ctx context.Context, c *container) error {
	if err := s.stop(ctx, c, 0); err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if c.gone {
		return nil
	}
	c.release()
	if err := s.clear(ctx, c); err != nil {
		return err
	}
	c.gone = true
	s.mu.Lock()
	delete(s.containers, c.ID)
	delete(s.names, containerName(c.pod, c.config().GetMetadata()))
	s.mu.Unlock()
	s.emit(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, c.ID, c.pod)
	return nil
}

// stopReading ends the copying of output; what comes after stays in the pipes for
// our successor.
func (c *container) stopReading() {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.output != nil {
		c.output.stop()
	}
}

// release closes this process' handles.
func (c *container) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.child != nil {
		c.child.Close()
		c.child = nil
	}
	if c.output != nil {
		c.output.close()
	}
}

func (s *Server) container(id string) (*container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return find(s.containers, id, "container")
}

func (s *Server) containersOf(podID string) []*container {
	return s.listContainers(func(c *container) bool { return c.Pod == podID })
}

func (s *Server) listContainers(keep func(*container) bool) []*container {
	s.mu.RLock()
	var list []*container
	for _, c := range s.containers {
		if keep(c) {
			list = append(list, c)
		}
	}
	s.mu.RUnlock()
	sort.Slice(list, func(a, b int) bool { return list[a].Created.Before(list[b].Created) })
	return list
}

// state is read under mu.
func (c *container) state() runtimeapi.ContainerState {
	switch {
	case !c.Finished.IsZero():
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case !c.Started.IsZero():
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

// ListContainers lists the containers that the filter selects.
func (s *Server) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.containerItems(req.GetFilter())}, nil
}

func (s *Server) containerItems(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	var items []*runtimeapi.Container
	for _, c := range s.listContainers(func(c *container) bool {
		return matchID(f.GetId(), c.ID) && matchID(f.GetPodSandboxId(), c.Pod) && matchLabels(f.GetLabelSelector(), c.config().GetLabels())
	}) {
		conf := c.config()
		c.mu.RLock()
		item := &runtimeapi.Container{
			Id: c.ID, PodSandboxId: c.Pod, Metadata: conf.GetMetadata(), Image: conf.GetImage(), ImageRef: c.ImageRef,
			ImageId: c.ImageID, State: c.state(), CreatedAt: c.Created.UnixNano(), Labels: conf.GetLabels(), Annotations: conf.GetAnnotations(),
		}
		c.mu.RUnlock()
		if f.GetState() == nil || f.GetState().GetState() == item.State {
			items = append(items, item)
		}
	}
	return items
}

// StreamContainers sends what ListContainers answers, one message a container.
func (s *Server) StreamContainers(req *runtimeapi.StreamContainersRequest, out runtimeapi.RuntimeService_StreamContainersServer) error {
	for _, item := range s.containerItems(req.GetFilter()) {
		if err := out.Send(&runtimeapi.StreamContainersResponse{Containers: []*runtimeapi.Container{item}}); err != nil {
			return err
		}
	}
	return nil
}

// ContainerStatus describes one container.
func (s *Server) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: c.status()}
	if req.GetVerbose() {
		c.mu.RLock()
		defer c.mu.RUnlock()
		resp.Info, err = info(map[string]any{
			"pid": c.Process.PID, "sandboxID": c.Pod, "cgroup": c.Cgroup, "config": message[*runtimeapi.ContainerConfig]{c.config()},
		})
		if err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (c *container) status() *runtimeapi.ContainerStatus {
	c.mu.RLock()
	defer c.mu.RUnlock()
	conf := c.config()
	st := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: conf.GetMetadata(), State: c.state(), CreatedAt: c.Created.UnixNano(),
		StartedAt: nanos(c.Started), FinishedAt: nanos(c.Finished), ExitCode: c.ExitCode,
		Image: conf.GetImage(), ImageRef: c.ImageRef, ImageId: c.ImageID, Reason: c.Reason, Message: c.Message,
		Labels: conf.GetLabels(), Annotations: conf.GetAnnotations(), Mounts: conf.GetMounts(), LogPath: c.LogPath,
		Resources:  &runtimeapi.ContainerResources{Linux: conf.GetLinux().GetResources()},
		StopSignal: signalEnum(c.stopSignal()),
	}
	user := &runtimeapi.LinuxContainerUser{Uid: int64(c.User.UID), Gid: int64(c.User.GID)}
	for _, g := range c.User.Groups {
		user.SupplementalGroups = append(user.SupplementalGroups, int64(g))
	}
	st.User = &runtimeapi.ContainerUser{Linux: user}
	return st
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// resolveUser finds out as whom the container runs, by the pod's security
// context before the image's USER.
func (s *Server) resolveUser(c *container) (userRecord, error) {
	sec, layers := c.security(), s.images.Folders(c.image)
	name, group := c.image.Config.User, ""
	if i := strings.IndexByte(name, ':'); i >= 0 {
		name, group = name[:i], name[i+1:]
	}
	switch {
	case sec.GetRunAsUser() != nil:
		name, group = fmt.Sprint(sec.GetRunAsUser().GetValue()), ""
	case sec.GetRunAsUsername() != "":
		name, group = sec.GetRunAsUsername(), ""
	case name == "":
		name = "0"
	}
	acc, err := oci.Lookup(layers, name)
	if err != nil {
		return userRecord{}, err
	}
	u := userRecord{UID: acc.UID, GID: acc.GID}
	switch {
	case sec.GetRunAsGroup() != nil:
		if sec.GetRunAsUser() == nil && sec.GetRunAsUsername() == "" {
			return u, fmt.Errorf("%w: a group is set (runAsGroup) without a user", errInvalid)
		}
		u.GID = uint32(sec.GetRunAsGroup().GetValue())
	case group != "":
		if u.GID, err = oci.LookupGroup(layers, group); err != nil {
			return u, err
		}
	}
	all := []uint32{u.GID}
	if sec.GetSupplementalGroupsPolicy() != runtimeapi.SupplementalGroupsPolicy_Strict {
		all = append(all, acc.Groups...)
	}
	for _, g := range sec.GetSupplementalGroups() {
		all = append(all, uint32(g))
	}
	seen := map[uint32]bool{}
	for _, g := range all {
		if !seen[g] {
			seen[g] = true
			u.Groups = append(u.Groups, g)
		}
	}
	sort.Slice(u.Groups, func(a, b int) bool { return u.Groups[a] < u.Groups[b] })
	return u, nil
}
