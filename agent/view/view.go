// Package view is what the runtime says of a pod: its sandboxes and containers
// as last observed. Values are replaced, never changed, so they may be shared.
package view

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/cri"
)

// Container is one container with the sandbox that it belongs to.
type Container struct {
	*runtimeapi.ContainerStatus
	SandboxID string
}

// Running tells whether the container's process lives.
func (c *Container) Running() bool {
	return c != nil && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING
}

// Exited tells whether the container's process has ended.
func (c *Container) Exited() bool {
	return c != nil && c.State == runtimeapi.ContainerState_CONTAINER_EXITED
}

// Limits are the limits that the runtime says the container has; nil if it does not.
func (c *Container) Limits() *runtimeapi.LinuxContainerResources {
	if c == nil {
		return nil
	}
	return c.Resources.GetLinux()
}

// Restarts is the container's restart count.
func (c *Container) Restarts() int { return podspec.RestartCount(c.Annotations) }

// Pod is everything that the runtime holds of one pod.
type Pod struct {
	// Sandboxes, newest first.
	Sandboxes []*runtimeapi.PodSandboxStatus
	// Containers by name, newest first.
	Containers map[string][]*Container
}

// Sandbox returns the newest sandbox, or nil.
func (p *Pod) Sandbox() *runtimeapi.PodSandboxStatus {
	if p == nil || len(p.Sandboxes) == 0 {
		return nil
	}
	return p.Sandboxes[0]
}

// Ready returns the newest sandbox if it is ready, else nil.
func (p *Pod) Ready() *runtimeapi.PodSandboxStatus {
	if s := p.Sandbox(); s != nil && s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		return s
	}
	return nil
}

// Latest returns the newest container of that name, or nil.
func (p *Pod) Latest(name string) *Container {
	if p == nil || len(p.Containers[name]) == 0 {
		return nil
	}
	return p.Containers[name][0]
}

// ByID finds a container.
func (p *Pod) ByID(id string) *Container {
	for _, list := range p.Containers {
		for _, c := range list {
			if c.Id == id {
				return c
			}
		}
	}
	return nil
}

// AnyRunning tells whether a process of the pod lives.
func (p *Pod) AnyRunning() bool {
	for _, list := range p.Containers {
		if slices.ContainsFunc(list, (*Container).Running) {
			return true
		}
	}
	return false
}

// With returns a copy of p in which c is new or replaced.
func (p *Pod) With(c *Container) *Pod {
	next := p.copy()
	name := c.Metadata.GetName()
	list := slices.DeleteFunc(slices.Clone(next.Containers[name]), func(o *Container) bool { return o.Id == c.Id })
	next.Containers[name] = sorted(append(list, c))
	return next
}

// WithSandbox returns a copy of p in which s is new or replaced.
func (p *Pod) WithSandbox(s *runtimeapi.PodSandboxStatus) *Pod {
	next := p.copy()
	next.Sandboxes = slices.DeleteFunc(slices.Clone(next.Sandboxes), func(o *runtimeapi.PodSandboxStatus) bool { return o.Id == s.Id })
	next.Sandboxes = append(next.Sandboxes, s)
	sortSandboxes(next.Sandboxes)
	return next
}

func (p *Pod) copy() *Pod {
	next := &Pod{Containers: map[string][]*Container{}}
	if p != nil {
		next.Sandboxes = p.Sandboxes
		for k, v := range p.Containers {
			next.Containers[k] = v
		}
	}
	return next
}

func sorted(list []*Container) []*Container {
	slices.SortStableFunc(list, func(a, b *Container) int {
		if d := b.Restarts() - a.Restarts(); d != 0 {
			return d
		}
		return int(min(1, max(-1, b.CreatedAt-a.CreatedAt)))
	})
	return list
}

func sortSandboxes(list []*runtimeapi.PodSandboxStatus) {
	slices.SortStableFunc(list, func(a, b *runtimeapi.PodSandboxStatus) int {
		if d := int(b.GetMetadata().GetAttempt()) - int(a.GetMetadata().GetAttempt()); d != 0 {
			return d
		}
		return int(min(1, max(-1, b.CreatedAt-a.CreatedAt)))
	})
}

// List reads everything from the runtime, by pod UID. A uid restricts it to one
// pod; "" means all.
func List(ctx context.Context, c *cri.Client, uid string) (map[string]*Pod, error) {
	var labels map[string]string
	if uid != "" {
		labels = map[string]string{podspec.LabelPodUID: uid}
	}
	sandboxes, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fmt.Errorf("list the runtime's sandboxes: %w", err)
	}
	containers, err := c.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fmt.Errorf("list the runtime's containers: %w", err)
	}
	// Statuses are independent of each other; a bounded number is asked for at
	// once. What vanished meanwhile is left out.
	boxes := make([]*runtimeapi.PodSandboxStatus, len(sandboxes.Items))
	states := make([]*Container, len(containers.Containers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, s := range sandboxes.Items {
		g.Go(func() (err error) {
			boxes[i], err = Sandbox(ctx, c, s.Id)
			return err
		})
	}
	for i, ct := range containers.Containers {
		g.Go(func() error {
			st, err := Status(ctx, c, ct.Id)
			if err == nil && st != nil {
				states[i] = &Container{ContainerStatus: st, SandboxID: ct.PodSandboxId}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	pods := map[string]*Pod{}
	get := func(labels map[string]string) *Pod {
		id := labels[podspec.LabelPodUID]
		if pods[id] == nil {
			pods[id] = &Pod{Containers: map[string][]*Container{}}
		}
		return pods[id]
	}
	for _, b := range boxes {
		if b != nil {
			p := get(b.Labels)
			p.Sandboxes = append(p.Sandboxes, b)
		}
	}
	for _, s := range states {
		if s != nil {
			p, name := get(s.Labels), s.Labels[podspec.LabelContainer]
			p.Containers[name] = append(p.Containers[name], s)
		}
	}
	for _, p := range pods {
		sortSandboxes(p.Sandboxes)
		for _, l := range p.Containers {
			sorted(l)
		}
	}
	return pods, nil
}

// Status reads one container's status; nil when it does not exist.
func Status(ctx context.Context, c *cri.Client, id string) (*runtimeapi.ContainerStatus, error) {
	r, err := c.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the status of container %s: %w", id, err)
	}
	return r.Status, nil
}

// Sandbox reads one sandbox's status; nil when it does not exist.
func Sandbox(ctx context.Context, c *cri.Client, id string) (*runtimeapi.PodSandboxStatus, error) {
	r, err := c.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the status of sandbox %s: %w", id, err)
	}
	return r.Status, nil
}

// IPs lists the addresses of a sandbox, the primary one first.
func IPs(s *runtimeapi.PodSandboxStatus) []string {
	n := s.GetNetwork()
	if n.GetIp() == "" {
		return nil
	}
	out := []string{n.Ip}
	for _, a := range n.AdditionalIps {
		out = append(out, a.Ip)
	}
	return out
}
