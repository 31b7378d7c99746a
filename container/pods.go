package container

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
	"knarr.dev/knarr/container/oci"
	"knarr.dev/knarr/container/oci/external"
	"knarr.dev/knarr/container/sandbox"
)

// pod is a sandbox at run time. Its record's mutable fields are guarded by mu;
// op serialises stop and remove.
type pod struct {
	op sync.Mutex
	mu sync.RWMutex
	podRecord
	spaces   sandbox.Pod
	executor oci.Executor // of its handler
	users    *oci.Users   // nil: the host's
	pause    *oci.Child   // holds a shared PID namespace
}

func (p *pod) config() *runtimeapi.PodSandboxConfig { return p.Config.m }

func (p *pod) options() *runtimeapi.NamespaceOption {
	return p.config().GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// RunPodSandbox makes the pod's namespaces and connects its network.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	c := req.GetConfig()
	meta := c.GetMetadata()
	if meta.GetName() == "" || meta.GetUid() == "" {
		return nil, fmt.Errorf("%w: the sandbox's metadata need a name and a uid", errInvalid)
	}
	p := &pod{podRecord: podRecord{
		ID: newID(), Config: message[*runtimeapi.PodSandboxConfig]{c}, Handler: req.GetRuntimeHandler(),
		Ready: true, Created: s.cfg.Now(), Boot: s.boot,
	}}
	var err error
	if p.executor, err = s.executor(req.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	if p.users, err = users(p.options()); err != nil {
		return nil, err
	}
	if r, ok := p.executor.(*external.Runtime); ok && p.users != nil && !r.Users() {
		return nil, fmt.Errorf("%w: runtime handler %q has no user namespaces: use the default one", errInvalid, req.GetRuntimeHandler())
	}
	p.Cgroup = s.parentGroup(or(c.GetLinux().GetCgroupParent(), p.ID))
	name := podName(meta)
	if err := s.reserve(name, p.ID); err != nil {
		return nil, err
	}
	if err := s.runPod(ctx, p); err != nil {
		err = fmt.Errorf("making sandbox %s/%s: %w", meta.GetNamespace(), meta.GetName(), err)
		clean := context.WithoutCancel(ctx)
		err = errors.Join(err, s.stopPod(clean, p), s.clearPod(p))
		s.release(name)
		return nil, err
	}
	s.mu.Lock()
	s.pods[p.ID] = p
	s.mu.Unlock()
	s.emit(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, p.ID, p)
	s.emit(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, p.ID, p)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: p.ID}, nil
}

func podName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("pod/%s/%s/%s/%d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// parentGroup places a relative cgroup parent beneath our own group.
func (s *Server) parentGroup(parent string) string {
	if strings.HasPrefix(parent, "/") {
		return filepath.Clean(parent)
	}
	return filepath.Join("/", s.cfg.CgroupParent, parent)
}

func (s *Server) podDir(id string) string { return filepath.Join(s.cfg.Root, "pods", id) }

func (s *Server) runPod(ctx context.Context, p *pod) (err error) {
	// The record comes first: it is what leads to everything else after a crash.
	p.Unfinished = true
	if err := save(s.podRecord(p.ID), &p.podRecord); err != nil {
		return err
	}
	s.at("pod: noted")
	c, ns := p.config(), p.options()
	sysctls := c.GetLinux().GetSysctls()
	p.spaces, err = sandbox.Create(ctx, sandbox.Options{
		Dir:         s.nsDir(p.ID),
		HostNetwork: ns.GetNetwork() == runtimeapi.NamespaceMode_NODE,
		HostIPC:     ns.GetIpc() == runtimeapi.NamespaceMode_NODE,
		Hostname:    c.GetHostname(),
		Sysctls:     sysctls,
		Users:       p.users,
		Launcher:    s.launcher,
	})
	if err != nil {
		return err
	}
	if p.users != nil {
		p.users.Path = p.spaces.Users
	}
	s.at("pod: namespaces made")
	group := s.layout.Group(p.Cgroup)
	fresh := !group.Exists()
	if err := group.Create(); err != nil {
		return err
	}
	if r := c.GetLinux().GetResources(); r != nil && fresh {
		if err := group.Apply(podLimits(r, c.GetLinux().GetOverhead())); err != nil {
			return fmt.Errorf("limiting the pod: %w", err)
		}
	}
	s.at("pod: group made")
	if err := s.podFiles(p); err != nil {
		return err
	}
	s.at("pod: files written")
	if ns.GetPid() == runtimeapi.NamespaceMode_POD { // the CRI's default, other than a pod's
		if err := s.startPause(ctx, p); err != nil {
			return err
		}
		s.at("pod: first process started")
	}
	if p.spaces.Network != "" && s.cfg.Network != nil {
		addrs, err := s.cfg.Network.Attach(ctx, p.ID, p.spaces.Network)
		if err != nil {
			return fmt.Errorf("connecting the network: %w", err)
		}
		s.at("pod: network connected")
		p.IPs = texts(addrs)
		if len(p.hostPorts()) > 0 {
			if err := s.mapPorts(ctx, p); err != nil {
				return fmt.Errorf("mapping the pod's host ports: %w", err)
			}
		}
	}
	p.Unfinished = false
	if err := save(s.podRecord(p.ID), &p.podRecord); err != nil {
		return err
	}
	s.at("pod: ready")
	return nil
}

func texts(addrs []netip.Addr) []string {
	list := make([]string, len(addrs))
	for i, a := range addrs {
		list[i] = a.String()
	}
	return list
}

// startPause gives the pod a process that holds its shared PID namespace.
func (s *Server) startPause(ctx context.Context, p *pod) error {
	g := s.layout.Group(filepath.Join(p.Cgroup, p.ID))
	if err := g.Create(); err != nil {
		return err
	}
	_, other := p.executor.(*external.Runtime) // joins it as the pod's root
	child, err := s.launcher.Pause(ctx, oci.Namespaces{Network: p.spaces.Network, IPC: p.spaces.IPC, UTS: p.spaces.UTS}, p.users, other, g)
	if err != nil {
		return fmt.Errorf("starting the pod's first process: %w", err)
	}
	p.pause, p.Pause = child, process{child.PID, child.StartTime}
	// Its only purpose is its namespace; here it is just collected.
	s.work.Go(func() { _, _ = child.Wait(s.life) })
	return nil
}

// podFiles writes what is mounted into each of the pod's containers.
func (s *Server) podFiles(p *pod) error {
	dir := s.podDir(p.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("making the pod's folder: %w", err)
	}
	name := p.config().GetHostname()
	if name == "" || p.spaces.UTS == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("reading the host's name: %w", err)
		}
		name = host
	}
	if err := os.WriteFile(filepath.Join(dir, "hostname"), []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	dns := p.config().GetDnsConfig()
	text := []byte(resolvConf(dns))
	if dns == nil {
		host, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("reading the host's resolv.conf: %w", err)
		}
		text = host
	}
	return os.WriteFile(filepath.Join(dir, "resolv.conf"), text, 0o644)
}

// resolvConf writes resolv.conf(5).
func resolvConf(dns *runtimeapi.DNSConfig) string {
	var b strings.Builder
	if len(dns.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.GetSearches(), " "))
	}
	for _, n := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.GetOptions(), " "))
	}
	return b.String()
}

// StopPodSandbox kills the pod's containers and takes its network away.
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if errors.Is(err, errNotFound) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	p.op.Lock()
	defer p.op.Unlock()
	if err := s.stopPod(ctx, p); err != nil {
		return nil, fmt.Errorf("stopping sandbox %s: %w", p.ID, err)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// stopPod is idempotent.
func (s *Server) stopPod(ctx context.Context, p *pod) error {
	var errs []error
	for _, c := range s.containersOf(p.ID) {
		errs = append(errs, s.stop(ctx, c, 0))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if p.Pause.PID != 0 || p.Unfinished {
		g := s.layout.Group(filepath.Join(p.Cgroup, p.ID))
		if err := errors.Join(g.Kill(), g.Remove(ctx)); err != nil {
			return fmt.Errorf("ending the pod's first process: %w", err)
		}
		s.at("pod: first process ended")
	}
	if p.spaces.Network != "" && s.cfg.Network != nil {
		if err := s.cfg.Network.Detach(ctx, p.ID); err != nil {
			return fmt.Errorf("disconnecting the network: %w", err)
		}
		s.at("pod: network disconnected")
	}
	if err := sandbox.ReleaseNetwork(s.nsDir(p.ID)); err != nil {
		return err
	}
	s.at("pod: network released")
	mapped := len(p.hostPorts()) > 0
	p.mu.Lock()
	was := p.Ready
	p.Ready, p.spaces.Network = false, ""
	p.mu.Unlock()
	if mapped {
		if err := s.mapPorts(ctx, nil); err != nil {
			return fmt.Errorf("taking the pod's host ports away: %w", err)
		}
	}
	if !was {
		return nil
	}
	// On a full disk pods must be stopped to make room; see recoverPods.
	if err := save(s.podRecord(p.ID), &p.podRecord); err != nil {
		s.cfg.Log.Error("recording a pod's end", "pod", p.ID, "error", err)
	}
	s.at("pod: stopped")
	s.emit(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, p.ID, p)
	return nil
}

// RemovePodSandbox removes the pod with its containers, running or not.
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if errors.Is(err, errNotFound) {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.removePod(ctx, p); err != nil {
		return nil, fmt.Errorf("removing sandbox %s: %w", p.ID, err)
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (s *Server) removePod(ctx context.Context, p *pod) error {
	p.op.Lock()
	defer p.op.Unlock()
	if err := s.stopPod(ctx, p); err != nil {
		return err
	}
	for _, c := range s.containersOf(p.ID) {
		if err := s.removeContainer(ctx, c); err != nil {
			return err
		}
	}
	if err := s.clearPod(p); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.pods, p.ID)
	delete(s.names, podName(p.config().GetMetadata()))
	s.mu.Unlock()
	if p.pause != nil {
		p.pause.Close()
	}
	s.emit(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, p.ID, p)
	return nil
}

// clearPod removes all that belongs to a stopped pod, its record at last.
func (s *Server) clearPod(p *pod) error {
	if err := sandbox.Remove(s.nsDir(p.ID)); err != nil {
		return err
	}
	s.at("pod: namespaces removed")
	if err := os.RemoveAll(s.podDir(p.ID)); err != nil {
		return err
	}
	s.at("pod: files removed")
	stop := s.ownRoot()
	if s.cfg.PodGroups != "" && strings.HasPrefix(p.Cgroup, s.cfg.PodGroups+"/") {
		stop = filepath.Dir(p.Cgroup)
	}
	s.layout.Group(p.Cgroup).Prune(stop)
	s.at("pod: group removed")
	if err := remove(s.podRecord(p.ID)); err != nil {
		return err
	}
	s.at("pod: forgotten")
	return nil
}

func (s *Server) ownRoot() string { return filepath.Join("/", s.cfg.CgroupParent) }

// pod finds a sandbox by its ID or the beginning of it.
func (s *Server) pod(id string) (*pod, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return find(s.pods, id, "sandbox")
}

func find[T any](all map[string]*T, id, kind string) (*T, error) {
	if x := all[id]; x != nil {
		return x, nil
	}
	var found *T
	for k, x := range all {
		if id != "" && strings.HasPrefix(k, id) {
			if found != nil {
				return nil, fmt.Errorf("%w: %q begins the IDs of several of kind %s", errInvalid, id, kind)
			}
			found = x
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%s %q: %w", kind, id, errNotFound)
	}
	return found, nil
}

func (s *Server) reserve(name, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other, ok := s.names[name]; ok {
		return fmt.Errorf("%s %w: it is %s", name, errExists, other)
	}
	s.names[name] = id
	return nil
}

func (s *Server) release(name string) {
	s.mu.Lock()
	delete(s.names, name)
	s.mu.Unlock()
}

func (s *Server) listPods() []*pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*pod, 0, len(s.pods))
	for _, p := range s.pods {
		list = append(list, p)
	}
	sort.Slice(list, func(a, b int) bool { return list[a].Created.Before(list[b].Created) })
	return list
}

// podLimits are those of a pod's group: its own, and what it takes beside its containers.
func podLimits(r, overhead *runtimeapi.LinuxContainerResources) cgroup.Limits {
	l, more := limits(r), limits(overhead)
	if l.Memory > 0 {
		l.Memory += more.Memory
	}
	if l.CPUQuota > 0 {
		l.CPUQuota += more.CPUQuota
	}
	if l.CPUShares > 0 && more.CPUShares > 2 { // 2 is none
		l.CPUShares += more.CPUShares
	}
	return l
}

// limits translates the CRI's resources.
func limits(r *runtimeapi.LinuxContainerResources) cgroup.Limits {
	l := cgroup.Limits{
		CPUShares: uint64(max(r.GetCpuShares(), 0)), CPUQuota: r.GetCpuQuota(), CPUPeriod: uint64(max(r.GetCpuPeriod(), 0)),
		CPUs: r.GetCpusetCpus(), MemoryNodes: r.GetCpusetMems(),
		Memory: r.GetMemoryLimitInBytes(), MemoryAndSwap: r.GetMemorySwapLimitInBytes(), Unified: r.GetUnified(),
	}
	for _, h := range r.GetHugepageLimits() {
		if l.HugePages == nil {
			l.HugePages = map[string]uint64{}
		}
		l.HugePages[h.GetPageSize()] = h.GetLimit()
	}
	return l
}
