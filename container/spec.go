package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/oci"
	"knarr.dev/knarr/container/oci/bundle"
)

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
			Target: filepath.Join(s.cfg.Root, "mnt"), Mapped: []string{s.layers.Dir(), dir},
		},
		ReadonlyRootfs: sec.GetReadonlyRootfs(), Privileged: sec.GetPrivileged(),
		SharedMemory: c.pod.spaces.SharedMemory, Process: *proc, TTY: conf.GetTty(),
		OOMScoreAdj: c.oomScore(), Users: c.pod.users, Hostname: c.pod.config().GetHostname(),
		Namespaces: oci.Namespaces{Network: c.pod.spaces.Network, IPC: c.pod.spaces.IPC, UTS: c.pod.spaces.UTS, Cgroup: !sec.GetPrivileged()},
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
	if c.Hooks != nil {
		spec.Hooks, spec.Annotations, spec.Bundle = c.Hooks, conf.GetAnnotations(), s.pipeDir(c.ID)
		spec.Rootfs.Target = filepath.Join(spec.Bundle, "rootfs")
	}
	for _, d := range conf.GetDevices() {
		spec.Devices = append(spec.Devices, oci.Device{HostPath: d.GetHostPath(), Path: d.GetContainerPath(), Access: d.GetPermissions()})
	}
	return spec, nil
}

// writeBundle describes a container of our own to its hooks; other executors do it
// themselves.
func (s *Server) writeBundle(spec *oci.Spec, c *container) error {
	if spec.Hooks == nil || c.pod.executor != oci.Executor(s.launcher) {
		return nil
	}
	if err := os.MkdirAll(spec.Rootfs.Target, 0o711); err != nil {
		return fmt.Errorf("making a bundle: %w", err)
	}
	return bundle.Of(spec, s.launcher, spec.Bundle, spec.Rootfs.Target, c.Cgroup).Write(spec.Bundle, spec.Users.Host(0))
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
	host := c.pod.config().GetHostname()
	if c.pod.options().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		host, _ = os.Hostname() // none: the program asks the kernel itself
	}
	if host != "" {
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
		if c.pod.Pause.PID == 0 { // the sandbox asked for one a container
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
