package container

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
	"knarr.dev/knarr/container/oci"
)

// process says with which privileges a container's processes run.
func (s *Server) process(c *container) (*oci.Process, error) {
	sec := c.security()
	if err := checkAppArmor(sec); err != nil {
		return nil, err
	}
	p := &oci.Process{UID: c.User.UID, GID: c.User.GID, Groups: c.User.Groups, NoNewPrivs: sec.GetNoNewPrivs()}
	caps, ambient, err := capabilities(sec)
	if err != nil {
		return nil, err
	}
	p.Caps = oci.Caps{Bounding: caps, Effective: caps, Inheritable: ambient, Ambient: ambient}
	if sec.GetPrivileged() {
		return p, nil
	}
	profile, standard, err := seccomp(sec)
	if err != nil {
		return nil, err
	}
	if c.pod.executor == oci.Executor(s.launcher) {
		p.Seccomp, err = s.filter(profile, standard, caps)
		return p, err
	}
	if p.Profile = profile; standard {
		p.Profile = oci.DefaultSeccomp(caps)
	}
	return p, nil
}

// capabilities applies the additions and drops to the default set. ALL is
// taken first, so that single names can correct it.
func capabilities(sec *runtimeapi.LinuxContainerSecurityContext) (caps, ambient uint64, err error) {
	if sec.GetPrivileged() {
		return oci.AllCaps, 0, nil
	}
	set := sec.GetCapabilities()
	add, err1 := oci.ParseCaps(set.GetAddCapabilities())
	drop, err2 := oci.ParseCaps(set.GetDropCapabilities())
	ambient, err3 := oci.ParseCaps(set.GetAddAmbientCapabilities())
	if err := errors.Join(err1, err2, err3); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", errInvalid, err)
	}
	caps = oci.DefaultCaps
	if add == oci.AllCaps {
		return oci.AllCaps &^ drop, ambient &^ drop, nil
	}
	caps = caps&^drop | add | ambient
	return caps, ambient, nil
}

func checkAppArmor(sec *runtimeapi.LinuxContainerSecurityContext) error {
	profile := sec.GetApparmor()
	name := ""
	if profile.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
		name = profile.GetLocalhostRef()
	} else if old := sec.GetApparmorProfile(); profile == nil && strings.HasPrefix(old, "localhost/") {
		name = strings.TrimPrefix(old, "localhost/")
	}
	if name != "" && !sec.GetPrivileged() {
		return fmt.Errorf("%w: AppArmor profile %q: AppArmor is not supported by this runtime: remove the profile from the pod", errInvalid, name)
	}
	return nil
}

// seccomp is the profile asked for; nil: none. It is the default one where
// standard says so, which is left to the caller to make: many have it already.
func seccomp(sec *runtimeapi.LinuxContainerSecurityContext) (profile *specs.LinuxSeccomp, standard bool, err error) {
	kind, ref := sec.GetSeccomp().GetProfileType(), sec.GetSeccomp().GetLocalhostRef()
	if sec.GetSeccomp() == nil {
		old := sec.GetSeccompProfilePath()
		switch {
		case old == "runtime/default", old == "docker/default":
		case strings.HasPrefix(old, "localhost/"):
			kind, ref = runtimeapi.SecurityProfile_Localhost, strings.TrimPrefix(old, "localhost/")
		default:
			return nil, false, nil
		}
	}
	switch kind {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil, false, nil
	case runtimeapi.SecurityProfile_Localhost:
		profile, err = oci.LoadSeccomp(strings.TrimPrefix(ref, "localhost/"))
		return profile, false, err
	}
	return nil, true, nil
}

// filter compiles the seccomp profile asked for. Default ones are kept, since
// most containers share them.
func (s *Server) filter(profile *specs.LinuxSeccomp, standard bool, caps uint64) ([]byte, error) {
	if !standard {
		if profile == nil {
			return nil, nil
		}
		return oci.CompileSeccomp(profile)
	}
	s.mu.RLock()
	f := s.filters[caps]
	s.mu.RUnlock()
	if f != nil {
		return f, nil
	}
	f, err := oci.CompileSeccomp(oci.DefaultSeccomp(caps))
	if err != nil {
		return nil, fmt.Errorf("compiling the default seccomp profile: %w", err)
	}
	s.mu.Lock()
	s.filters[caps] = f
	s.mu.Unlock()
	return f, nil
}

// deviceRules allows the devices that the CRI names.
func deviceRules(devices []*runtimeapi.Device) ([]cgroup.Device, error) {
	var rules []cgroup.Device
	for _, d := range devices {
		var st unix.Stat_t
		if err := unix.Stat(d.GetHostPath(), &st); err != nil {
			return nil, fmt.Errorf("reading device %s: %w", d.GetHostPath(), err)
		}
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFBLK && kind != unix.S_IFCHR {
			return nil, fmt.Errorf("%w: %s is not a device", errInvalid, d.GetHostPath())
		}
		rules = append(rules, cgroup.Device{
			Block: kind == unix.S_IFBLK, Access: d.GetPermissions(),
			Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		})
	}
	return rules, nil
}
