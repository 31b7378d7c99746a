package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/oci"
)

// StartContainer runs the container's command.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.RLock()
	state := c.state()
	c.mu.RUnlock()
	if c.gone || state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, fmt.Errorf("%w: container %s is %s, only a created one can be started", errState, c.ID, state)
	}
	if err := s.start(ctx, c); err != nil {
		return nil, s.startFailed(c, err)
	}
	s.emit(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, c.ID, c.pod)
	s.follow(c)
	return &runtimeapi.StartContainerResponse{}, nil
}

// startFailed records why a container never ran, as an exit.
func (s *Server) startFailed(c *container, err error) error {
	code := 128
	var start *oci.StartError
	if errors.As(err, &start) {
		code = start.ExitCode()
	}
	c.mu.Lock()
	c.ExitCode, c.Reason, c.Message = int32(code), "StartError", err.Error()
	c.Started, c.Finished = time.Unix(0, 0), s.cfg.Now()
	c.mu.Unlock()
	close(c.exited)
	saved := save(s.containerRecord(c.ID), &c.containerRecord)
	return errors.Join(fmt.Errorf("failed to start container %q: %w", c.ID, err), saved)
}

func (s *Server) start(ctx context.Context, c *container) error {
	spec, err := s.spec(c)
	if err != nil {
		return err
	}
	out, stdio, err := s.openOutput(c)
	if err != nil {
		return err
	}
	child, err := s.launcher.Start(ctx, spec, stdio, c.group)
	closeAll(stdio.In, stdio.Out, stdio.Err)
	if err != nil {
		out.close()
		return err
	}
	c.mu.Lock()
	c.child, c.output = child, out
	c.Process, c.Started = process{child.PID, child.StartTime}, s.cfg.Now()
	c.mu.Unlock()
	held := []*os.File{child.File()}
	if child.Console != nil {
		out.attachConsole(child.Console)
		child.Console = nil
	}
	held = append(held, out.held()...)
	if err := errors.Join(s.holder.Put(c.ID, held...), save(s.containerRecord(c.ID), &c.containerRecord)); err != nil {
		// Without these it could not be taken up again.
		err = errors.Join(err, c.group.Kill())
		_, waited := child.Wait(context.WithoutCancel(ctx))
		c.release()
		return errors.Join(err, waited)
	}
	return nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// follow writes the container's output to its log and waits for its end.
func (s *Server) follow(c *container) {
	c.mu.RLock()
	child, out := c.child, c.output
	c.mu.RUnlock()
	out.run(&s.work, s.cfg.Log)
	s.work.Go(func() {
		code, err := child.Wait(s.life)
		if s.life.Err() != nil {
			return // we end, not the container
		}
		if err != nil {
			s.cfg.Log.Error("waiting for a container", "container", c.ID, "error", err)
		}
		s.finish(c, code, s.cfg.Now())
	})
}

// finish records the end of a container's first process and ends its others.
func (s *Server) finish(c *container, code int, at time.Time) {
	oom := c.group.OOMKills() > 0
	if err := c.group.Kill(); err != nil {
		s.cfg.Log.Error("killing what a container left", "container", c.ID, "error", err)
	}
	if c.output != nil {
		c.output.drain(s.life)
	}
	c.mu.Lock()
	c.ExitCode, c.Finished = int32(code), at
	switch {
	case oom:
		c.Reason = "OOMKilled"
	case code == 0:
		c.Reason = "Completed"
	default:
		c.Reason = "Error"
	}
	c.mu.Unlock()
	if err := save(s.containerRecord(c.ID), &c.containerRecord); err != nil {
		s.cfg.Log.Error("recording a container's end", "container", c.ID, "error", err)
	}
	if err := s.holder.Drop(c.ID); err != nil {
		s.cfg.Log.Error("letting go of a container's descriptors", "container", c.ID, "error", err)
	}
	close(c.exited)
	s.emit(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, c.ID, c.pod)
}

// spec says in the executor's terms what the CRI and the image ask for.
func (s *Server) spec(c *container) (*oci.Spec, error) {
	conf, sec := c.config(), c.security()
	proc, err := s.process(c)
	if err != nil {
		return nil, err
	}
	dir := s.containerDir(c.ID)
	spec := &oci.Spec{
		ID: c.ID, Args: commandLine(conf, c.image.Config.Entrypoint, c.image.Config.Cmd), Env: s.environment(c), Cwd: conf.GetWorkingDir(),
		Rootfs: oci.Rootfs{
			Lowers: s.images.Folders(c.image), Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
			Target: filepath.Join(s.cfg.Root, "mnt"),
		},
		ReadonlyRootfs: sec.GetReadonlyRootfs(), Privileged: sec.GetPrivileged(),
		SharedMemory: c.pod.spaces.SharedMemory, Process: *proc, TTY: conf.GetTty(),
		OOMScoreAdj: c.oomScore(),
		Namespaces:  oci.Namespaces{Network: c.pod.spaces.Network, IPC: c.pod.spaces.IPC, UTS: c.pod.spaces.UTS, Cgroup: !sec.GetPrivileged()},
	}
	if spec.Cwd == "" {
		spec.Cwd = c.image.Config.WorkingDir
	}
	if !strings.HasPrefix(spec.Cwd, "/") {
		spec.Cwd = "/" + spec.Cwd
	}
	if !sec.GetPrivileged() {
		spec.MaskedPaths, spec.ReadonlyPaths = sec.GetMaskedPaths(), sec.GetReadonlyPaths()
		for _, m := range c.group.Mounts() {
			spec.CgroupMounts = append(spec.CgroupMounts, oci.CgroupMount{Source: m[0], Target: m[1]})
		}
	} else {
		for _, m := range s.layout.Group("/").Mounts() {
			spec.CgroupMounts = append(spec.CgroupMounts, oci.CgroupMount{Source: m[0], Target: m[1]})
		}
	}
	if spec.Namespaces.PID, err = s.pidNamespace(c); err != nil {
		return nil, err
	}
	if spec.Mounts, err = s.mounts(c); err != nil {
		return nil, err
	}
	for _, d := range conf.GetDevices() {
		spec.Devices = append(spec.Devices, oci.Device{HostPath: d.GetHostPath(), Path: d.GetContainerPath()})
	}
	return spec, nil
}

// commandLine follows Kubernetes' rule: a command replaces the image's
// entrypoint and its arguments, arguments alone replace the image's arguments.
func commandLine(conf *runtimeapi.ContainerConfig, entrypoint, cmd []string) []string {
	command, args := conf.GetCommand(), conf.GetArgs()
	if len(command) == 0 {
		command = entrypoint
		if len(args) == 0 {
			args = cmd
		}
	}
	return append(append([]string(nil), command...), args...)
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment merges the image's variables with the pod's, which win.
func (s *Server) environment(c *container) []string {
	var env []string
	at := map[string]int{}
	set := func(key, value string) {
		kv := key + "=" + value
		if i, ok := at[key]; ok {
			env[i] = kv
			return
		}
		at[key] = len(env)
		env = append(env, kv)
	}
	add := func(kv string) { k, v, _ := strings.Cut(kv, "="); set(k, v) }
	add(defaultPath)
	if host := c.pod.config().GetHostname(); host != "" {
		set("HOSTNAME", host)
	}
	if c.TTY {
		set("TERM", "xterm")
	}
	for _, kv := range c.image.Config.Env {
		add(kv)
	}
	for _, kv := range c.config().GetEnvs() {
		set(kv.GetKey(), string(kv.GetValue()))
	}
	if _, ok := at["HOME"]; !ok {
		home := "/"
		if acc, err := oci.Lookup(s.images.Folders(c.image), fmt.Sprint(c.User.UID)); err == nil {
			home = acc.Home
		}
		set("HOME", home)
	}
	return env
}

// oomScore is read under mu, as the resources may be changed at any time.
func (c *container) oomScore() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return int(c.config().GetLinux().GetResources().GetOomScoreAdj())
}

func (s *Server) pidNamespace(c *container) (string, error) {
	o := c.security().GetNamespaceOptions()
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_NODE:
		return "", nil
	case runtimeapi.NamespaceMode_POD:
		// Absent options mean the default, a namespace for the container alone.
		if o == nil || c.pod.Pause.PID == 0 {
			return oci.Private, nil
		}
		return fmt.Sprintf("/proc/%d/ns/pid", c.pod.Pause.PID), nil
	case runtimeapi.NamespaceMode_TARGET:
		t, err := s.container(o.GetTargetId())
		if err != nil {
			return "", err
		}
		t.mu.RLock()
		defer t.mu.RUnlock()
		if t.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return "", fmt.Errorf("%w: the target container %s does not run", errState, t.ID)
		}
		if t.Pod != c.Pod {
			return "", fmt.Errorf("%w: the target container %s is of another pod", errInvalid, t.ID)
		}
		return fmt.Sprintf("/proc/%d/ns/pid", t.Process.PID), nil
	}
	return oci.Private, nil
}

// mounts lists the bind mounts: the pod's own files, then those asked for.
func (s *Server) mounts(c *container) ([]oci.Mount, error) {
	var list []oci.Mount
	taken := map[string]bool{}
	for _, m := range c.config().GetMounts() {
		taken[filepath.Clean(m.GetContainerPath())] = true
	}
	for _, name := range []string{"hostname", "resolv.conf"} {
		if t := "/etc/" + name; !taken[t] {
			list = append(list, oci.Mount{
				Source: filepath.Join(s.podDir(c.Pod), name), Target: t, ReadOnly: c.security().GetReadonlyRootfs(),
			})
		}
	}
	for _, m := range c.config().GetMounts() {
		if m.GetImage() != nil {
			o, err := s.imageMount(m)
			if err != nil {
				return nil, err
			}
			list = append(list, o)
			continue
		}
		if m.GetRecursiveReadOnly() && (!m.GetReadonly() || m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE) {
			return nil, fmt.Errorf("%w: a recursively read-only mount (%s) must be read-only and private", errInvalid, m.GetContainerPath())
		}
		source := m.GetHostPath()
		if _, err := os.Stat(source); os.IsNotExist(err) {
			// The kubelet relies on missing host folders being made.
			if err := os.MkdirAll(source, 0o755); err != nil {
				return nil, fmt.Errorf("making the host path of %s: %w", m.GetContainerPath(), err)
			}
		}
		o := oci.Mount{
			Source: source, Target: m.GetContainerPath(), ReadOnly: m.GetReadonly(), RecursiveReadOnly: m.GetRecursiveReadOnly(),
		}
		switch m.GetPropagation() {
		case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			o.Propagation = unix.MS_SLAVE
		case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			o.Propagation = unix.MS_SHARED
		}
		list = append(list, o)
	}
	return list, nil
}

// imageMount shows an image's files, or those of a folder in it, read-only and
// not executable, as Kubernetes has it for image volumes.
func (s *Server) imageMount(m *runtimeapi.Mount) (oci.Mount, error) {
	img, err := s.images.Get(m.GetImage().GetImage())
	if err != nil {
		return oci.Mount{}, fmt.Errorf("image to mount on %s: %w", m.GetContainerPath(), err)
	}
	o := oci.Mount{Layers: s.images.Folders(img), Target: m.GetContainerPath(), ReadOnly: true, Flags: unix.MOUNT_ATTR_NOEXEC}
	if sub := m.GetImageSubPath(); sub != "" {
		if o.Layers, err = subFolders(o.Layers, sub); err != nil {
			return oci.Mount{}, err
		}
	}
	return o, nil
}

// subFolders are the layers' parts of one folder. A link on the way is refused: it
// could lead out of the image.
func subFolders(layers []string, sub string) ([]string, error) {
	if !filepath.IsLocal(sub) {
		return nil, fmt.Errorf("%w: imageSubPath %q must be a path within the image", errInvalid, sub)
	}
	var found []string
	for _, l := range layers {
		at, hidden := l, false
		ok := true
		for _, step := range strings.Split(filepath.Clean(sub), "/") {
			at = filepath.Join(at, step)
			st, err := os.Lstat(at)
			if err != nil {
				ok = false
				break
			}
			if !st.IsDir() {
				if st.Mode()&os.ModeCharDevice != 0 { // a whiteout: nothing below shows
					return found, nonEmpty(found, sub)
				}
				return nil, fmt.Errorf("%w: imageSubPath %q: %s is not a folder", errInvalid, sub, step)
			}
			value := make([]byte, 1)
			if n, err := unix.Lgetxattr(at, "trusted.overlay.opaque", value); err == nil && n == 1 && value[0] == 'y' {
				hidden = true
			}
		}
		if ok {
			found = append(found, at)
		}
		if hidden {
			break
		}
	}
	return found, nonEmpty(found, sub)
}

func nonEmpty(found []string, sub string) error {
	if len(found) == 0 {
		return fmt.Errorf("%w: imageSubPath %q is not in the image", errInvalid, sub)
	}
	return nil
}
