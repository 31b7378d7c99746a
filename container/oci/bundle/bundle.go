// Package bundle describes containers in the terms of the OCI runtime specification, for
// programs that run them and for hooks: as a folder with the file config.json.
package bundle

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/oci"
)

// Config is the part of a bundle's configuration (config.json) that is used here:
// specs.Spec would bring the descriptions of four more systems into the binary.
type Config struct {
	Version     string            `json:"ociVersion"`
	Process     *specs.Process    `json:"process"`
	Root        *specs.Root       `json:"root"`
	Hostname    string            `json:"hostname,omitempty"`
	Mounts      []specs.Mount     `json:"mounts"`
	Hooks       *specs.Hooks      `json:"hooks,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Linux       linux             `json:"linux"`
}

type linux struct {
	Namespaces        []specs.LinuxNamespace `json:"namespaces"`
	UIDMappings       []specs.LinuxIDMapping `json:"uidMappings,omitempty"`
	GIDMappings       []specs.LinuxIDMapping `json:"gidMappings,omitempty"`
	Devices           []specs.LinuxDevice    `json:"devices,omitempty"`
	CgroupsPath       string                 `json:"cgroupsPath,omitempty"`
	Resources         *resources             `json:"resources,omitempty"`
	Seccomp           *specs.LinuxSeccomp    `json:"seccomp,omitempty"`
	RootfsPropagation string                 `json:"rootfsPropagation"`
	MaskedPaths       []string               `json:"maskedPaths,omitempty"`
	ReadonlyPaths     []string               `json:"readonlyPaths,omitempty"`
}

type resources struct {
	Devices []specs.LinuxDeviceCgroup `json:"devices"`
}

// Write puts the configuration into the folder dir, whole or not at all, for nobody but
// owner to read, the container's root on the host: hooks run as that, too.
func (c *Config) Write(dir string, owner uint32) error {
	data, err := json.Marshal(c)
	file := filepath.Join(dir, oci.ConfigFile)
	if err == nil {
		err = os.WriteFile(file+".tmp", data, 0o600)
	}
	if err == nil {
		err = os.Chown(file+".tmp", int(owner), int(owner))
	}
	if err == nil {
		err = os.Rename(file+".tmp", file)
	}
	if err != nil {
		return fmt.Errorf("writing a bundle: %w", err)
	}
	return nil
}

// Of says in the specification's terms what s asks for. host knows what this machine
// permits, dir is the bundle's folder, root the container's tree in it. group is the
// path of the control group if whoever reads this is to place the container there and to
// limit its devices, else empty; other limits are not told: the group has them already.
func Of(s *oci.Spec, host *oci.Launcher, dir, root, group string) *Config {
	b := &Config{
		Version: oci.VersionOCI, Process: Process(host, &s.Process, s.Args, s.Env, s.Cwd, s.TTY),
		Root: &specs.Root{Path: root, Readonly: s.ReadonlyRootfs}, Mounts: mounts(s, dir), Hooks: s.Hooks, Annotations: s.Annotations,
		Linux: linux{
			Namespaces: namespaces(s.Namespaces), Seccomp: profile(s.Profile),
			MaskedPaths: s.MaskedPaths, ReadonlyPaths: s.ReadonlyPaths, RootfsPropagation: propagation(s.Mounts),
		},
	}
	if u := s.Users; u != nil {
		b.Linux.Namespaces = append(b.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: u.Path})
		b.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: u.HostID, Size: u.Size}}
		b.Linux.GIDMappings = b.Linux.UIDMappings
	}
	if s.Namespaces.UTS != "" {
		b.Hostname = s.Hostname
	}
	devices := s.Devices
	rules := []specs.LinuxDeviceCgroup{{Allow: s.Privileged, Access: "rwm"}}
	if s.Privileged {
		devices = append(oci.HostDevices(), devices...)
	}
	for _, d := range devices {
		node, rule, ok := device(d)
		if !ok {
			continue // it went away meanwhile
		}
		b.Linux.Devices = append(b.Linux.Devices, node)
		if !s.Privileged {
			rules = append(rules, rule)
		}
	}
	if group != "" {
		b.Linux.CgroupsPath = group
		b.Linux.Resources = &resources{Devices: rules}
	}
	return b
}

// Process describes a container's first process, and later ones alike.
func Process(host *oci.Launcher, p *oci.Process, args, env []string, cwd string, tty bool) *specs.Process {
	caps := host.Permitted(p.Caps)
	files := host.OpenFiles()
	return &specs.Process{
		Terminal: tty, Args: args, Env: env, Cwd: cwd, NoNewPrivileges: p.NoNewPrivs,
		User: specs.User{UID: p.UID, GID: p.GID, AdditionalGids: p.Groups},
		Capabilities: &specs.LinuxCapabilities{
			Bounding: oci.CapNames(caps.Bounding), Effective: oci.CapNames(caps.Effective), Permitted: oci.CapNames(caps.Effective),
			Inheritable: oci.CapNames(caps.Inheritable), Ambient: oci.CapNames(caps.Ambient),
		},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: files, Soft: files}},
	}
}

func namespaces(n oci.Namespaces) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		path string
	}{{specs.NetworkNamespace, n.Network}, {specs.IPCNamespace, n.IPC}, {specs.UTSNamespace, n.UTS}, {specs.PIDNamespace, n.PID}} {
		switch ns.path {
		case "": // the host's
		case oci.Private:
			list = append(list, specs.LinuxNamespace{Type: ns.kind})
		default:
			list = append(list, specs.LinuxNamespace{Type: ns.kind, Path: ns.path})
		}
	}
	if n.Cgroup {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

// profile names the conventions of system calls that the rules are for, as the
// program would kill whoever uses another.
func profile(p *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	if p == nil || len(p.Architectures) > 0 {
		return p
	}
	c := *p
	switch runtime.GOARCH {
	case "amd64":
		c.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		c.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return &c
}

// mounts are those that every container has, then the container's own.
func mounts(s *oci.Spec, dir string) []specs.Mount {
	taken := map[string]bool{}
	for _, m := range s.Mounts {
		taken[path.Clean(m.Target)] = true
	}
	mode := "ro"
	if s.Privileged {
		mode = "rw"
	}
	var list []specs.Mount
	for _, m := range []specs.Mount{
		{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}},
		{Destination: "/dev/shm", Type: "bind", Source: s.SharedMemory, Options: []string{"rbind", "rw", "nosuid", "nodev", "noexec"}},
	} {
		if taken[m.Destination] || taken[path.Dir(m.Destination)] || m.Destination == "/sys/fs/cgroup" && taken["/sys"] {
			continue
		}
		if m.Source == "" {
			m.Source = m.Type
		}
		list = append(list, m)
	}
	for i, m := range s.Mounts {
		prepared := ""
		if m.Propagation == unix.MS_SHARED || len(m.Layers) > 0 || m.Mapped && s.Users != nil {
			prepared = Volume(dir, i)
		}
		list = append(list, mount(m, prepared))
	}
	return list
}

// Volume is where the i-th mount of a container is prepared, if it needs to be.
func Volume(dir string, i int) string { return filepath.Join(dir, fmt.Sprint("volume-", i)) }

func mount(m oci.Mount, prepared string) specs.Mount {
	o := specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: []string{"rbind"}}
	switch m.Propagation {
	case unix.MS_SHARED:
		o.Options = append(o.Options, "rshared")
	case unix.MS_SLAVE:
		o.Options = append(o.Options, "rslave")
	default:
		o.Options = append(o.Options, "rprivate")
	}
	if prepared != "" {
		o.Source = prepared
	}
	switch {
	case m.RecursiveReadOnly:
		o.Options = append(o.Options, "rro")
	case m.ReadOnly:
		o.Options = append(o.Options, "ro")
	default:
		o.Options = append(o.Options, "rw")
	}
	if m.Flags&unix.MOUNT_ATTR_NOEXEC != 0 {
		o.Options = append(o.Options, "noexec")
	}
	return o
}

// propagation of the root's mount: programs make all mounts slaves or private
// unless the root says otherwise, and the strongest wish of the mounts counts.
func propagation(mounts []oci.Mount) string {
	kind := "rprivate"
	for _, m := range mounts {
		switch {
		case m.Propagation == unix.MS_SHARED:
			return "rshared"
		case m.Propagation == unix.MS_SLAVE:
			kind = "rslave"
		}
	}
	return kind
}

// device describes a device of the host.
func device(d oci.Device) (specs.LinuxDevice, specs.LinuxDeviceCgroup, bool) {
	var st unix.Stat_t
	if unix.Stat(d.HostPath, &st) != nil {
		return specs.LinuxDevice{}, specs.LinuxDeviceCgroup{}, false
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	mode := os.FileMode(st.Mode & 0o777)
	uid, gid := st.Uid, st.Gid
	return specs.LinuxDevice{Path: d.Path, Type: kind, Major: major, Minor: minor, FileMode: &mode, UID: &uid, GID: &gid},
		specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: d.Access}, true
}
