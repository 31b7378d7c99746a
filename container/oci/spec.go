package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Spec is everything needed to start a container's first process.
type Spec struct {
	ID   string
	Args []string // Args[0] is looked up in Env's PATH when it holds no slash
	Env  []string
	Cwd  string // made when missing
	// Hostname is the pod's; with a UTS namespace of [Namespaces] it is set there already.
	Hostname string

	Rootfs         Rootfs
	Mounts         []Mount  // after the default ones, in this order
	Devices        []Device // beside the default ones
	ReadonlyRootfs bool
	MaskedPaths    []string
	ReadonlyPaths  []string
	Privileged     bool   // all host devices, writable /sys
	SharedMemory   string // host path shown as /dev/shm
	CgroupMounts   []CgroupMount

	Namespaces Namespaces
	Users      *Users // nil: the host's
	Process
	OOMScoreAdj int
	TTY         bool

	// Hooks are run at moments of the container's life; nil: none. With them Bundle is a
	// folder in which the container is described to them, and Rootfs.Target is below it.
	Hooks       *specs.Hooks
	Bundle      string
	Annotations map[string]string // told to hooks
}

// Process are the privileges of a process, of a container's first and of those
// executed in it later.
type Process struct {
	UID, GID   uint32
	Groups     []uint32
	Caps       Caps
	NoNewPrivs bool
	Seccomp    []byte // compiled by [CompileSeccomp]; empty: no filter
	// Profile is what Seccomp was compiled from. Of the two an [Executor] uses the one
	// that it understands, and callers need to set no other.
	Profile *specs.LinuxSeccomp
}

// Caps are capability sets as bit masks, bit n standing for capability n.
type Caps struct {
	Bounding, Effective, Inheritable, Ambient uint64
}

// Rootfs is an overlay: read-only layers, topmost first, beneath a writable folder.
type Rootfs struct {
	Lowers []string
	Upper  string
	Work   string
	Target string // empty host folder on which the tree is put together
	// Mapped are host folders that hold the layers and the writable folder. With
	// [Spec.Users] the overlay sees them with their owners shifted.
	Mapped []string
}

// Mount is one bind mount, or the view of an image's layers.
type Mount struct {
	Source            string   // host path; exists
	Layers            []string // host folders instead of Source, the topmost first; mount them ReadOnly
	Target            string   // path in the container; made when missing
	ReadOnly          bool
	RecursiveReadOnly bool   // implies ReadOnly
	Propagation       uint64 // unix.MS_PRIVATE, MS_SLAVE or MS_SHARED; 0 is private
	Mapped            bool   // show the owners of files as [Spec.Users] has them
	Flags             uint64 // MOUNT_ATTR_* set beside
}

// Device is a device node of the host to be made in the container.
type Device struct {
	HostPath, Path string
	Access         string // of the letters r, w and m; the control group is what enforces it
}

// CgroupMount shows a cgroup of the host in the container, read-only unless privileged.
type CgroupMount struct {
	Source, Target string
}

// Namespaces to be entered, as paths; empty means the host's own.
type Namespaces struct {
	Network, IPC, UTS string
	// PID is a path, [Private] for a new namespace, or empty for the host's.
	PID string
	// Cgroup: give the container a cgroup namespace of its own.
	Cgroup bool
}

// Private asks for a new namespace.
const Private = "private"

// Cgroup places a process. It is implemented by package cgroup.
type Cgroup interface {
	// Path is the cgroup's path below the root of each hierarchy.
	Path() string
	// Open returns a descriptor of the cgroup v2 folder for clone3, or -1
	// where there is no v2 hierarchy, and a function that closes it.
	Open() (fd int, release func(), err error)
	// Join adds pid to the hierarchies that Open's descriptor does not cover.
	Join(pid int) error
	// JoinThread adds the calling thread alone to those hierarchies, so that what it
	// forks begins there, and returns what moves it back.
	JoinThread() (leave func() error, err error)
}

const noSetattr = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
