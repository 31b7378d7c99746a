package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"knarr.dev/knarr/container/cdi"
	"knarr.dev/knarr/container/image"
	"knarr.dev/knarr/container/oci/external"
)

// Config is what the runtime needs to know.
type Config struct {
	// Root is the persistent folder: images, layers, records. It must be on a
	// file system that overlayfs accepts as upper layer (ext4, XFS, btrfs, tmpfs).
	Root string
	// Run is the volatile folder: sockets, FIFOs, pinned namespaces.
	Run string
	// CgroupParent is the group beneath which the runtime makes its own.
	// Relative cgroup parents of sandboxes are placed there, too.
	CgroupParent string
	// PodGroups is a group beneath which the node's agent keeps groups: what is above a pod
	// there stays when the pod goes. Empty: there is none.
	PodGroups string
	// Network connects pods; nil leaves them with loopback only.
	Network Network
	// Ports takes the pods' host ports; nil: whoever calls the CRI sees to them.
	Ports Ports `json:"-"`
	// StreamAddr is where exec, attach and port-forward are served, e.g.
	// "127.0.0.1:0". Empty: those calls are answered Unimplemented.
	StreamAddr string
	// Registries configures image hosts by name.
	Registries image.Registries
	// Handlers are runtimes beside the built-in one, by the names of RuntimeClass
	// handlers; nil: those of [external.Defaults]. One whose program is not there is
	// as good as absent.
	Handlers map[string]external.Config
	// DeviceDirs hold CDI specifications, the later ones win; nil: the usual ones.
	DeviceDirs []string
	// DialRegistry connects to image hosts; nil: from this process' own network.
	DialRegistry image.Dial   `json:"-"`
	Log          *slog.Logger `json:"-"`
	// Now is the clock; nil is the machine's.
	Now func() time.Time `json:"-"`

	reached func(step string) // see [Server.at]
}

// Network connects the pods' network namespaces. Both calls are idempotent.
type Network interface {
	// Attach connects the namespace pinned at netns and returns its addresses.
	Attach(ctx context.Context, id, netns string) ([]netip.Addr, error)
	// Detach undoes Attach; an unknown id is no error.
	Detach(ctx context.Context, id string) error
}

func (c *Config) complete() error {
	if !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.Run) {
		return errors.New("container: Root and Run must be absolute paths")
	}
	if c.CgroupParent == "" {
		c.CgroupParent = "knarr"
	}
	if c.DeviceDirs == nil {
		c.DeviceDirs = cdi.Dirs
	}
	if c.Handlers == nil {
		c.Handlers = external.Defaults()
	}
	for name, h := range c.Handlers {
		if err := h.Check(); err != nil {
			return fmt.Errorf("container: runtime handler %q: %w", name, err)
		}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}
