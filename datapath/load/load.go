// Package load puts the BPF programs of the service datapath into the kernel, keeps them there without knarr, and
// reads and writes their maps in the terms of package plan.
//
// Maps and attachments are pinned. Opening them again takes the maps over as they are and replaces each program
// atomically, so that traffic flows through a restart and an upgrade.
package load

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// layout names the pinned maps' format. Another format gets another name and starts empty beside the old one.
const layout = "v1"

// attachment is a place where a program runs.
type attachment struct {
	name     string
	at       ebpf.AttachType
	optional bool // the kernel may lack it; what is lost is the service address in getpeername(2)
}

// The reverse direction comes first: no socket may be redirected that could not be shown its service address.
var attachments = []attachment{
	{serviceProgRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg, false},
	{serviceProgRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg, false},
	{serviceProgGetpeername4, ebpf.AttachCgroupInet4GetPeername, true},
	{serviceProgGetpeername6, ebpf.AttachCgroupInet6GetPeername, true},
	{serviceProgSendmsg4, ebpf.AttachCGroupUDP4Sendmsg, false},
	{serviceProgSendmsg6, ebpf.AttachCGroupUDP6Sendmsg, false},
	{serviceProgConnect4, ebpf.AttachCGroupInet4Connect, false},
	{serviceProgConnect6, ebpf.AttachCGroupInet6Connect, false},
}

// Config says where programs run and where they are kept.
type Config struct {
	// PinDir is a directory of a bpffs, this instance's own. It is created.
	PinDir string
	// Cgroup is the cgroup2 directory whose processes are served.
	Cgroup string
	// HostCookie is the cookie of the node's network namespace, zero where it is the initial one.
	HostCookie uint64
}

// Kernel holds the loaded maps and attachments.
type Kernel struct {
	cfg   Config
	dir   string
	maps  serviceMaps
	links []link.Link
}

// permitMemory lifts the limit of locked memory, as which kernels before 5.11 count
// programs and maps. The library's own package for that finds out what the kernel
// does at the start of every process, from a list of mounts that grows with the pods.
func permitMemory() error {
	const since = 5<<16 | 11<<8
	v, err := features.LinuxVersionCode()
	if err != nil {
		return fmt.Errorf("asking for the kernel's version: %w", err)
	}
	if v >= since {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		return fmt.Errorf("lifting the limit of locked memory, which eBPF needs before Linux 5.11: %w", err)
	}
	return nil
}

// Open loads the programs, or takes over those that an earlier process pinned.
func Open(cfg Config) (*Kernel, error) {
	if err := permitMemory(); err != nil {
		return nil, err
	}
	k := &Kernel{cfg: cfg, dir: filepath.Join(cfg.PinDir, layout)}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the BPF pin directory: %w; is %s on a bpffs?", err, cfg.PinDir)
	}
	spec, err := loadService()
	if err != nil {
		return nil, fmt.Errorf("reading the embedded BPF object: %w", err)
	}
	for _, m := range []string{serviceMapServices, serviceMapBackends, serviceMapMembers, serviceMapNodes,
		serviceMapAffinity, serviceMapPeers, serviceMapTranslations} {
		spec.Maps[m].Pinning = ebpf.PinByName
	}
	if err := setVariables(spec, cfg); err != nil {
		return nil, err
	}
	var objs serviceObjects
	err = spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: k.dir}})
	if err != nil {
		return nil, fmt.Errorf("loading the service programs (kernel 5.10 or later with BPF is needed): %w", err)
	}
	k.maps = objs.serviceMaps
	defer objs.servicePrograms.Close()
	programs := map[string]*ebpf.Program{
		serviceProgConnect4: objs.Connect4, serviceProgConnect6: objs.Connect6,
		serviceProgSendmsg4: objs.Sendmsg4, serviceProgSendmsg6: objs.Sendmsg6,
		serviceProgRecvmsg4: objs.Recvmsg4, serviceProgRecvmsg6: objs.Recvmsg6,
		serviceProgGetpeername4: objs.Getpeername4, serviceProgGetpeername6: objs.Getpeername6,
	}
	for _, a := range attachments {
		l, err := k.attach(a, programs[a.name])
		if err != nil && !(a.optional && errors.Is(err, ebpf.ErrNotSupported)) {
			return nil, errors.Join(fmt.Errorf("attaching %s to cgroup %s: %w", a.name, cfg.Cgroup, err), k.Close())
		}
		if l != nil {
			k.links = append(k.links, l)
		}
	}
	return k, nil
}

// setVariables tells the programs what the kernel can do; branches that it cannot take are removed at load.
func setVariables(spec *ebpf.CollectionSpec, cfg Config) error {
	has := func(fn asm.BuiltinFunc) bool { return features.HaveProgramHelper(ebpf.CGroupSockAddr, fn) == nil }
	for name, value := range map[string]any{
		serviceVarHostCookie: cfg.HostCookie,
		serviceVarHasRetval:  has(asm.FnSetRetval),
		serviceVarHasStorage: has(asm.FnSkStorageGet),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("setting BPF variable %s: %w", name, err)
		}
	}
	return nil
}

// attach runs the program at its place: by replacing the one of the pinned link, or by a new link.
func (k *Kernel) attach(a attachment, p *ebpf.Program) (link.Link, error) {
	pin := filepath.Join(k.dir, "link_"+a.name)
	l, err := link.LoadPinnedLink(pin, nil)
	switch {
	case err == nil:
		if err = l.Update(p); err == nil {
			return l, nil
		}
		// The cgroup went away under the link: start anew.
		_ = l.Unpin()
		_ = l.Close()
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("loading pinned link: %w", err)
	}
	l, err = link.AttachCgroup(link.CgroupOptions{Path: k.cfg.Cgroup, Attach: a.at, Program: p})
	if err != nil {
		return nil, err
	}
	if err := l.Pin(pin); err != nil {
		return nil, errors.Join(fmt.Errorf("pinning link: %w", err), l.Close())
	}
	return l, nil
}

// Retire removes what versions with another map format pinned. Until the new maps are filled, both sets of programs
// work side by side: what the old ones translate is no service address any more.
func (k *Kernel) Retire() error {
	entries, err := os.ReadDir(k.cfg.PinDir)
	if err != nil {
		return fmt.Errorf("listing BPF pins: %w", err)
	}
	for _, e := range entries {
		if e.Name() == layout {
			continue
		}
		if err := os.RemoveAll(filepath.Join(k.cfg.PinDir, e.Name())); err != nil {
			return fmt.Errorf("removing BPF pins of an earlier version: %w", err)
		}
	}
	return nil
}

// Close forgets the kernel's objects; pinned, they keep working.
func (k *Kernel) Close() error {
	var errs []error
	for _, l := range k.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, k.maps.Close())...)
}

// Destroy detaches the programs and removes maps and pins.
func (k *Kernel) Destroy() error {
	var errs []error
	for i := len(k.links) - 1; i >= 0; i-- {
		errs = append(errs, k.links[i].Unpin())
	}
	errs = append(errs, k.Close(), os.RemoveAll(k.cfg.PinDir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing BPF objects under %s: %w", k.cfg.PinDir, err)
	}
	return nil
}
