// Package agent is knarr's node agent: it runs the pods that the API assigns to
// one node, through any runtime that speaks CRI, and reports how they fare.
//
//	API pods, ConfigMaps, Secrets ──> Agent ──> one actor per pod (package pod)
//	runtime events ─────────────────┘   ├────> node object and lease (package node)
//	                                    └────> kubelet API (package server)
//
// Nothing polls: actors wake by watches, runtime events and their own timers. An
// agent that ends leaves its containers running; the next one takes them up.
package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/credentials"
	"knarr.dev/knarr/agent/devices"
	"knarr.dev/knarr/agent/dra"
	"knarr.dev/knarr/agent/eviction"
	"knarr.dev/knarr/agent/imagegc"
	"knarr.dev/knarr/agent/images"
	"knarr.dev/knarr/agent/metrics"
	"knarr.dev/knarr/agent/node"
	"knarr.dev/knarr/agent/plugins"
	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/server"
	"knarr.dev/knarr/agent/shutdown"
	"knarr.dev/knarr/agent/usage"
	"knarr.dev/knarr/agent/userns"
	"knarr.dev/knarr/agent/volumes"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/cri"
)

// removals is how many pods are removed from the node at a time: with as many as there
// are, the ends of 50 pods took 80 ms longer on two CPUs.
const removals = 1

// Drainer is asked before a terminating pod's containers get their preStop hook
// and SIGTERM. It blocks until every node has taken the pod out of its data path
// and the pod's connections have drained, or until ctx ends; ctx is bounded by
// the grace period.
type Drainer interface {
	Drain(ctx context.Context, pod *corev1.Pod) error
}

// Classes are the control groups that pods of one quality of service share.
type Classes interface {
	// Burstable has the burstable pods weigh what they request of CPUs, in thousandths.
	Burstable(milli int64) error
}

// Groups keeps the control groups of pods for a runtime that leaves them to the
// agent, as others than knarr's do.
type Groups interface {
	// Apply makes a group and sets its limits; path is below the hierarchies' roots.
	Apply(path string, r *runtimeapi.LinuxContainerResources) error
	// Remove removes it with all below it; one that is not there is no error.
	Remove(ctx context.Context, path string) error
}

// Config is everything that an Agent needs. NodeName, Client, CRI, Recorder, Root
// and LogRoot are required.
type Config struct {
	NodeName string
	Client   client.Interface
	CRI      *cri.Client
	Recorder client.Recorder
	// Root holds the agent's files: pods/<uid>/{volumes,etc-hosts,containers},
	// memory/<uid>, which no disk sees, and image_manager, who pulled which images.
	Root string
	// LogRoot holds container logs: <ns>_<name>_<uid>/<container>/<restart>.log.
	LogRoot string
	// LogLinks holds links to these logs, <pod>_<ns>_<container>-<ID>.log; empty: there are
	// none.
	LogLinks string
	// StaticPodPath is a folder, or file, of manifests of pods that run whatever the
	// API says; empty: there are none.
	StaticPodPath string
	// LogMaxSize is how many bytes a log file has before it is put aside, LogMaxFiles how
	// many there are of a container; 0: 10 MiB and 5.
	LogMaxSize  int64
	LogMaxFiles int
	// SeccompDefault: containers that name no seccomp profile have the runtime's.
	SeccompDefault bool
	// Reserved is kept back from pods for what else runs on the machine.
	Reserved corev1.ResourceList
	// SingleProcessOOMKill: the kernel ends one process of a container that is out of
	// memory, not all, as it does anyway in the first version of control groups.
	SingleProcessOOMKill bool
	// UnsafeSysctls are patterns of the sysctls that pods may set besides the safe ones;
	// see podspec.CheckSysctlPatterns.
	UnsafeSysctls []string
	// PodPids is how many tasks a pod may have; 0 or -1: no limit of its own.
	PodPids int64
	// Taints are those with which the node is made.
	Taints []corev1.Taint
	// CgroupRoot is the parent of all pods' cgroups; default /kubepods.
	CgroupRoot string
	NodeIPs    []netip.Addr
	// PodCIDR is the node's pod range, for its spec; invalid: none is told.
	PodCIDR netip.Prefix
	// EachObject follows the ConfigMaps and Secrets that the node's pods name one
	// by one, as a node that may read no others must. Else all are followed, which
	// costs nothing where the client shares the server's memory.
	EachObject    bool
	ClusterDNS    []netip.Addr
	ClusterDomain string // default cluster.local
	// ResolvConf is the file with the node's resolvers; empty: /etc/resolv.conf, or what
	// systemd-resolved forwards to if that names only the machine itself.
	ResolvConf string
	MaxPods    int // default 110
	// Capacity overrides what is read from the machine.
	Capacity   corev1.ResourceList
	NodeLabels map[string]string
	Version    string // of knarr, as kubeletVersion
	Commit     string // from which knarr was built
	Drainer    Drainer
	// MaxRestart bounds the back-off of containers that end again and again; 0: 5 min.
	MaxRestart time.Duration
	// Eviction says when the node is short of what; nil: as eviction.Default.
	Eviction *eviction.Config
	// Observe says what the node has left; nil: what the machine has.
	Observe func() eviction.Observation
	// ImageRoot is on the file system of images and containers; empty: Root.
	ImageRoot string
	// ImageGC says which images are removed when; zero: as imagegc.Default.
	ImageGC imagegc.Config
	// Disk measures the file system of a path, in bytes; nil: as node.Disk.
	Disk func(path string) (total, free int64, err error)
	// Users are the host's users for pods with user namespaces; zero: 65536 for each
	// pod, from 65536 on.
	Users userns.Slots
	// SwapBehavior is NoSwap (or empty) or LimitedSwap.
	SwapBehavior string
	// KubeletDir is where plugins and monitors look for a node's agent: below it are
	// device-plugins, plugins_registry and pod-resources. Empty: there are no plugins.
	KubeletDir string
	// Credentials are the plugins that know of registries' users, whose programs lie in
	// CredentialBin; nil: there are none. DockerDirs are folders with a docker
	// configuration, of which the first counts that has one.
	Credentials   *credentials.Config
	CredentialBin string
	DockerDirs    []string
	// Verify says of which images on the node pods must show that they may have them.
	Verify images.Verification
	// ShutdownPeriods are the times in which pods end before the machine does, by
	// priority; nil: the machine does not wait. Inhibitor reaches what has it wait; nil:
	// there is nothing.
	ShutdownPeriods []shutdown.Period
	Inhibitor       func(ctx context.Context) (Inhibitor, error)
	// Exclusive says which containers have CPUs and memory of their own.
	Exclusive Exclusive
	Groups    Groups // nil: the runtime keeps the pods' control groups
	// Classes are the groups that pods share; nil: nobody weighs them.
	Classes Classes
	// Listen serves the kubelet API; nil: it is not served.
	Listen net.Listener
	TLS    *tls.Config // nil: plain HTTP, for tests
	// Healthz answers the health checks to everybody who reaches it; nil: nothing does.
	Healthz net.Listener
	// Requests counts the client's requests, which it makes with ClientCert; nil: there are
	// none, as with a client in the server's process.
	Requests   *metrics.Requests
	ClientCert func() *x509.Certificate
	Authorize  func(r *http.Request) error
	Clock      clock.WithDelayedExecution
	Log        *slog.Logger
}

// Agent runs the pods of one node. Make one with New.
type Agent struct {
	cfg     Config
	deps    *pod.Deps
	pods    *pods
	node    *node.Reporter
	objects *objects
	server  *server.Server
	usage   *usage.Meter

	imagesMu sync.Mutex
	images   imagegc.Records // guarded by imagesMu

	pressure *pressure
	devices  *devices.Manager  // nil: no plugins
	plugins  *plugins.Registry // nil: no plugins
	claims   *dra.Manager      // nil: no plugins
	exclusive
	ending ending
	keys   *credentials.Keyring
}

// New checks the configuration and wires an agent; it does nothing yet.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.NodeName == "":
		return nil, errors.New("agent: the node has no name; set NodeName")
	case cfg.Client == nil || cfg.CRI == nil || cfg.Recorder == nil:
		return nil, errors.New("agent: Client, CRI and Recorder are required")
	case cfg.Root == "" || cfg.LogRoot == "":
		return nil, errors.New("agent: Root and LogRoot are required")
	}
	defaults(&cfg)
	a := &Agent{cfg: cfg}
	var ips []string
	for _, ip := range cfg.NodeIPs {
		ips = append(ips, ip.String())
	}
	capacity, info, err := node.Machine(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("agent: read the machine's capacity: %w", err)
	}
	for k, v := range cfg.Capacity {
		capacity[k] = v
	}
	a.pressure = &pressure{a: a, cfg: *cfg.Eviction, sent: map[string]bool{}}
	a.pressure.observe = a.pressure.left
	if cfg.Observe != nil {
		a.pressure.observe = cfg.Observe
	}
	if err := errors.Join(a.openPlugins(), a.openExclusive()); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a.node = node.New(node.Config{
		Name: cfg.NodeName, Client: cfg.Client, CRI: cfg.CRI, Recorder: cfg.Recorder, IPs: ips, PodCIDR: cfg.PodCIDR, Labels: cfg.NodeLabels, Taints: cfg.Taints,
		Capacity: capacity, MaxPods: cfg.MaxPods, Info: info, Version: cfg.Version, Port: port(cfg.Listen), Pressure: a.pressure.has, Ending: a.ending.going.Load, Extended: a.extended(), Reserved: a.reserved(),
		Clock: cfg.Clock, Log: cfg.Log,
	})
	count := metrics.New(cfg.Version, cfg.Commit)
	count.Add(cfg.collectors()...)
	cfg.CRI.Observe(count.Operation)
	a.objects = newObjects(cfg.Client, cfg.EachObject)
	pulled, err := images.New(images.Config{CRI: cfg.CRI, Root: filepath.Join(cfg.Root, "image_manager"), Keys: a.findKeys, Account: a.findAccount, Verify: cfg.Verify, Clock: cfg.Clock, Log: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a.deps = &pod.Deps{
		Client: cfg.Client, CRI: cfg.CRI, Recorder: cfg.Recorder, Images: pulled,
		Volumes: volumes.New(volumes.Config{Root: cfg.Root, NodeName: cfg.NodeName, Client: cfg.Client, Objects: a.objects,
			Clock: cfg.Clock, Allocatable: a.node.Allocatable, Images: a.ensureImage, Observe: count.Mounted, Log: cfg.Log}),
		Objects: a.objects, Services: a.objects.services, LogRoot: cfg.LogRoot, LogLinks: cfg.LogLinks, CgroupRoot: cfg.CgroupRoot, PodPids: cfg.PodPids, NodeIPs: ips,
		ClusterDNS: cfg.ClusterDNS, ClusterDomain: cfg.ClusterDomain, ResolvConf: cfg.ResolvConf, Memory: capacity.Memory().Value(),
		Allocatable: a.node.Allocatable, Metrics: count, MaxRestart: cfg.MaxRestart, Removing: semaphore.NewWeighted(removals), Clock: cfg.Clock, Log: cfg.Log,
	}
	a.deps.Swap = podspec.Swap{Behavior: cfg.SwapBehavior, Unified: node.UnifiedMemory("/sys/fs/cgroup")}
	a.deps.SeccompDefault = cfg.SeccompDefault
	a.deps.EndTogether = a.deps.Swap.Unified && !cfg.SingleProcessOOMKill
	if info.Swap != nil {
		a.deps.Swap.Total = *info.Swap.Capacity
	}
	for name, q := range capacity {
		if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) && !q.IsZero() {
			a.deps.HugePages = append(a.deps.HugePages, name)
		}
	}
	slices.Sort(a.deps.HugePages)
	if cfg.LogLinks != "" {
		if err := errors.Join(os.MkdirAll(cfg.LogLinks, 0o755), pod.SweepLinks(cfg.LogLinks, cfg.LogRoot)); err != nil {
			return nil, fmt.Errorf("agent: links to logs: %w", err)
		}
	}
	if err := a.deps.Volumes.Open(); err != nil {
		return nil, fmt.Errorf("agent: volumes in memory: %w", err)
	}
	if a.deps.Users, err = userns.New(cfg.Users, filepath.Join(cfg.Root, "pods")); err != nil {
		return nil, fmt.Errorf("agent: user IDs of pods: %w", err)
	}
	if cfg.Drainer != nil {
		a.deps.Drainer = cfg.Drainer
	}
	if cfg.Groups != nil {
		a.deps.Groups = measuredGroups{cfg.Groups, count, cfg.Clock}
	}
	a.keys = credentials.New(cfg.Credentials, cfg.CredentialBin, cfg.DockerDirs, accounts{cfg.Client, a.deps.Volumes}, cfg.Clock)
	a.pods = newPods(a.deps, cfg.NodeName)
	a.pods.sysctls, a.pods.classes = cfg.UnsafeSysctls, cfg.Classes
	a.openResources()
	if a.claims != nil {
		a.deps.Claims, a.pods.dropClaims = a.claims, a.dropClaims
	}
	a.pods.refuses = a.refuses
	a.pods.files = newStatics(cfg.StaticPodPath, a.pods, a.node)
	a.deps.Admit = a.pods.admit(a.node)
	a.deps.Resizable = a.pods.resizable(a.node)
	a.usage = usage.New(usage.Config{NodeName: cfg.NodeName, CRI: cfg.CRI, Pods: a.pods.snapshots, Volumes: a.deps.Volumes.Dirs, Ready: a.deps.Volumes.Ready, LogRoot: cfg.LogRoot, Root: cfg.Root, Clock: cfg.Clock})
	if cfg.Listen != nil {
		a.server = server.New(server.Config{
			Usage: a.usage, Metrics: count, Settings: a.settings(), CgroupRoot: cfg.CgroupRoot,
			CRI: cfg.CRI, Pods: a.pods.snapshots, Find: a.pods.find, Changed: a.pods.changes, Node: a.node.Node, LogRoot: cfg.LogRoot, NodeName: cfg.NodeName,
			Authorize: cfg.Authorize, Alive: a.node.Alive, Volumes: a.deps.Volumes.Ready, Log: cfg.Log, Clock: cfg.Clock,
		})
	}
	return a, nil
}

func defaults(cfg *Config) {
	cfg.LogMaxSize, cfg.LogMaxFiles = cmp.Or(cfg.LogMaxSize, maxLogSize), cmp.Or(cfg.LogMaxFiles, maxLogFiles)
	if cfg.CgroupRoot == "" {
		cfg.CgroupRoot = "/kubepods"
	}
	if cfg.ClusterDomain == "" {
		cfg.ClusterDomain = "cluster.local"
	}
	if cfg.Eviction == nil {
		def := eviction.Default()
		cfg.Eviction = &def
	}
	if cfg.ImageRoot == "" {
		cfg.ImageRoot = cfg.Root
	}
	if cfg.ImageGC == (imagegc.Config{}) {
		cfg.ImageGC = imagegc.Default()
	}
	if cfg.Disk == nil {
		cfg.Disk = node.Disk
	}
	if cfg.MaxPods == 0 {
		cfg.MaxPods = 110
	}
	if cfg.Users == (userns.Slots{}) {
		cfg.Users = userns.Slots{First: userns.DefaultPerPod, PerPod: userns.DefaultPerPod, Pods: cfg.MaxPods}
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
}

func port(l net.Listener) int32 {
	if l == nil {
		return 0
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		return int32(a.Port)
	}
	return 0
}

// ensureImage serves volumes that show an image.
func (a *Agent) ensureImage(ctx context.Context, pod *corev1.Pod, image string, policy corev1.PullPolicy) (string, error) {
	img, err := a.deps.Ensure(ctx, pod, image, policy)
	if err != nil {
		return "", err
	}
	return img.Ref, nil
}

// Run runs the node's pods until ctx ends. Containers go on running then.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.node.Run(ctx) })
	g.Go(func() error { return a.pods.run(ctx, a.objects) })
	g.Go(func() error { return a.collect(ctx) })
	g.Go(func() error { return a.pressure.run(ctx) })
	g.Go(func() error { return a.inhibit(ctx) })
	if a.cpus != nil {
		g.Go(func() error { return a.shareCPUs(ctx) })
	}
	if a.devices != nil {
		g.Go(func() error { return a.devices.Run(ctx) })
		g.Go(func() error {
			defer a.claims.Close()
			return a.plugins.Run(ctx)
		})
		g.Go(func() error { return a.tellResources(ctx) })
	}
	if a.server != nil {
		g.Go(func() error { return a.server.Serve(ctx, a.cfg.Listen, a.cfg.TLS) })
		if a.cfg.Healthz != nil {
			g.Go(func() error { return a.server.ServeHealth(ctx, a.cfg.Healthz) })
		}
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("agent of node %s: %w", a.cfg.NodeName, err)
	}
	return nil
}
