// Package datapath connects pods and services of one node: each pod gets a veth pair and an address, service
// addresses are translated to backends at the socket by eBPF, node ports and external addresses for clients of other
// machines by nftables, and traffic that leaves the cluster takes the node's address.
//
// The kernel holds all of it. Programs, maps, links and rules outlive the process: Open takes over what is there,
// Close leaves it working, Destroy alone removes it. Nothing is kept in files; which pod has which address is read
// back from the links.
//
// Services are set as a whole (Set). Its return is the acknowledgement that the kernel has the state: a connection
// made afterwards never reaches a backend that the state does not name.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/vishvananda/netlink"

	"knarr.dev/knarr/datapath/load"
	"knarr.dev/knarr/datapath/plan"
)

// Config is what a node's datapath needs to know. Name, PodCIDR and Run are required.
type Config struct {
	// Name tells instances on one machine apart: up to 7 lower-case letters and digits. Links, pins and the nftables
	// table carry it.
	Name string
	// PodCIDR holds this node's pod addresses; the first one is the gateway.
	PodCIDR netip.Prefix
	// ClusterCIDR holds the pods of all nodes; invalid: PodCIDR alone.
	ClusterCIDR netip.Prefix
	// ServiceCIDR holds cluster IPs. Packets to it that no service took are refused; invalid: nothing is refused.
	ServiceCIDR netip.Prefix
	// Run is the instance's directory for volatile state.
	Run string
	// PinDir is a directory of a bpffs; empty: bpf under Run. Where no bpffs is there, one is mounted.
	PinDir string
	// CgroupRoot is the cgroup2 directory whose processes see services; empty: the first cgroup2 mount.
	CgroupRoot string
	// Cgroup is a group below CgroupRoot whose processes alone see services, for several nodes on one machine; it is
	// created. Empty: CgroupRoot itself.
	Cgroup string
	// NodeAddrs are the addresses at which node ports answer; empty: all of the node, as they come and go.
	NodeAddrs []netip.Addr
	// MTU of pod links; zero: that of the link with the default route, or 1500.
	MTU int
	Log *slog.Logger
}

// Datapath is one node's datapath. Its methods may be called concurrently.
type Datapath struct {
	cfg     Config
	log     *slog.Logger
	gateway netip.Addr
	nl      *netlink.Handle
	kernel  *load.Kernel
	stop    context.CancelFunc
	watches sync.WaitGroup

	set     sync.Mutex    // serialises Set
	planner *plan.Planner // nil: what the kernel holds has to be read first
	nft     bool          // the table holds the external services of planner
	retired bool          // pins of earlier versions are gone

	pods podTable
}

var validName = regexp.MustCompile(`^[a-z][a-z0-9]{0,6}$`)

// check fills defaults in and reports what is missing.
func (c *Config) check() error {
	if !validName.MatchString(c.Name) {
		return fmt.Errorf("datapath name %q: give 1 to 7 lower-case letters and digits", c.Name)
	}
	if !c.PodCIDR.IsValid() || !c.PodCIDR.Addr().Is4() || c.PodCIDR.Bits() > 30 {
		return fmt.Errorf("pod CIDR %q: give an IPv4 network of /30 or larger", c.PodCIDR)
	}
	c.PodCIDR = c.PodCIDR.Masked()
	if !c.ClusterCIDR.IsValid() {
		c.ClusterCIDR = c.PodCIDR
	}
	if c.Run == "" {
		return errors.New("datapath: a run directory is required")
	}
	if c.PinDir == "" {
		c.PinDir = filepath.Join(c.Run, "bpf")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Open prepares the node, or takes over what an earlier process left. The datapath watches the node's links and
// addresses until Close or the end of ctx.
func Open(ctx context.Context, cfg Config) (*Datapath, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.CgroupRoot == "" {
		root, err := cgroupRoot()
		if err != nil {
			return nil, err
		}
		cfg.CgroupRoot = root
	}
	if cfg.Cgroup != "" {
		cfg.CgroupRoot = filepath.Join(cfg.CgroupRoot, cfg.Cgroup)
		if err := os.MkdirAll(cfg.CgroupRoot, 0o755); err != nil {
			return nil, fmt.Errorf("control group whose processes see services: %w", err)
		}
	}
	nl, err := netlink.NewHandle()
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	d := &Datapath{cfg: cfg, log: cfg.Log, gateway: cfg.PodCIDR.Addr().Next(), nl: nl}
	d.pods.init(cfg.PodCIDR)
	if err := d.open(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Datapath) open(ctx context.Context) error {
	if err := mountBPF(d.cfg.PinDir); err != nil {
		return err
	}
	if err := d.prepareHost(); err != nil {
		return err
	}
	if err := d.ensureTable(); err != nil {
		return err
	}
	cookie, err := netnsCookie()
	if err != nil {
		d.log.Debug("no cookie of the network namespace; taking it for the initial one", "err", err)
	}
	d.kernel, err = load.Open(load.Config{
		PinDir: d.pinDir(), Cgroup: d.cfg.CgroupRoot, HostCookie: cookie,
	})
	if err != nil {
		return err
	}
	// The watch starts before the links are read, so that none vanishes unseen between the two.
	ctx, d.stop = context.WithCancel(ctx)
	if err := d.watch(ctx); err != nil {
		return err
	}
	if err := d.setNodes(); err != nil {
		return err
	}
	return d.adoptPods()
}

func (d *Datapath) pinDir() string { return filepath.Join(d.cfg.PinDir, d.cfg.Name) }

// Gateway returns the node's address that every pod of this node reaches, also when it is shut off from all else.
func (d *Datapath) Gateway() netip.Addr { return d.gateway }

// Close lets go of the kernel's objects. Pods and services keep working.
func (d *Datapath) Close() error {
	if d.stop != nil {
		d.stop()
		d.watches.Wait()
	}
	d.pods.close()
	d.nl.Close()
	if d.kernel != nil {
		return d.kernel.Close()
	}
	return nil
}

// Destroy closes the datapath and removes every trace of it: pod links, routes, addresses, rules, programs, pins.
func (d *Datapath) Destroy(ctx context.Context) error {
	if d.stop != nil {
		d.stop()
		d.watches.Wait()
	}
	d.pods.close()
	defer d.nl.Close()
	var errs []error
	if d.kernel != nil {
		errs = append(errs, d.kernel.Destroy())
	}
	errs = append(errs, d.destroyTable(), d.destroyHost(ctx), unmountBPF(d.cfg.PinDir))
	if d.cfg.Cgroup != "" {
		// Whoever put processes there may have removed it, or still needs it.
		_ = os.Remove(d.cfg.CgroupRoot)
	}
	return errors.Join(errs...)
}
