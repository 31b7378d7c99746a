package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
	"knarr.dev/knarr/container/image"
	"knarr.dev/knarr/container/oci"
	"knarr.dev/knarr/container/oci/external"
	"knarr.dev/knarr/container/sandbox"
	"knarr.dev/knarr/container/snapshot"
	"knarr.dev/knarr/container/stream"
)

// Server implements the CRI's runtime and image services.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg      Config
	boot     string
	layout   cgroup.Layout
	launcher *oci.Launcher
	holder   *oci.Holder
	layers   *snapshot.Store
	images   *image.Store
	streams  *stream.Server // nil without StreamAddr
	events   events

	// life ends with Close; it is the parent of all work that outlives a call.
	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	ports    sync.Mutex // serialises mapPorts
	external map[string]*external.Runtime
	asking   atomic.Bool // see ask
	tryShift sync.Once   // see shifts
	canShift bool

	mu         sync.RWMutex
	pods       map[string]*pod
	containers map[string]*container
	names      map[string]string // "pod/..." and "container/..." to ID, against doubles
	filters    map[uint64][]byte // compiled default seccomp filters by capabilities
}

// New makes a runtime and takes up what an earlier one left: running
// containers go on, those that ended meanwhile show how. It must not be
// called while another runtime uses the same folders. ctx bounds the start
// and, when cancelled, ends the background work as [Server.Close] does.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, pods: map[string]*pod{}, containers: map[string]*container{}, names: map[string]string{}, filters: map[uint64][]byte{}}
	s.life, s.end = context.WithCancel(ctx)
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the container runtime: %w", err), s.Close())
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("taking up containers: %w", err), s.Close())
	}
	if err := s.mapPorts(ctx, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("mapping host ports: %w", err), s.Close())
	}
	return s, nil
}

func (s *Server) open() (err error) {
	for _, d := range []string{"pods", "containers", "mnt"} {
		if err := os.MkdirAll(filepath.Join(s.cfg.Root, d), 0o711); err != nil {
			return err
		}
	}
	for _, d := range []string{"c", "oci/x"} {
		if err := os.MkdirAll(filepath.Join(s.cfg.Run, d), 0o711); err != nil {
			return err
		}
	}
	if err := sandbox.Prepare(filepath.Join(s.cfg.Run, "ns")); err != nil {
		return err
	}
	if s.boot, err = bootID(); err != nil {
		return err
	}
	if s.layout, err = cgroup.Detect(); err != nil {
		return err
	}
	if s.launcher, err = oci.NewLauncher(filepath.Join(s.cfg.Run, "c")); err != nil {
		return err
	}
	s.external = map[string]*external.Runtime{}
	for name, h := range s.cfg.Handlers {
		s.external[name] = external.New(name, h, filepath.Join(s.cfg.Run, "oci"), filepath.Join(s.cfg.Run, "c"), s.launcher)
	}
	if s.holder, err = oci.OpenHolder(filepath.Join(s.cfg.Run, "holder.sock"), s.placeHolder); err != nil {
		return err
	}
	if s.layers, err = snapshot.Open(s.cfg.Root); err != nil {
		return err
	}
	s.images, err = image.Open(filepath.Join(s.cfg.Root, "images"), s.layers, s.cfg.Registries, s.cfg.DialRegistry, s.cfg.Log, s.cfg.Now)
	if err != nil {
		return err
	}
	if s.cfg.StreamAddr != "" {
		s.streams, err = stream.Listen(s.cfg.StreamAddr, streamRuntime{s})
	}
	return err
}

// placeHolder keeps the holder alive when a service manager kills all that is
// in the runtime's own control group.
func (s *Server) placeHolder(pid int) error {
	g := s.holderGroup()
	if err := g.Create(); err != nil {
		return err
	}
	return g.JoinAll(pid)
}

func (s *Server) holderGroup() cgroup.Group {
	return s.layout.Group(filepath.Join(s.cfg.CgroupParent, "holder"))
}

// Serve answers the CRI on l until ctx ends. It leaves containers running.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	// Exec results and lists may be large; the kubelet accepts 16 MiB.
	const limit = 16 << 20
	g := grpc.NewServer(grpc.MaxRecvMsgSize(limit), grpc.MaxSendMsgSize(limit), grpc.UnaryInterceptor(classify), grpc.StreamInterceptor(classifyStream))
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
	g.RegisterService(imageFiles(), s)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serving the CRI: %w", err)
	}
	return nil
}

// Close ends this process' part: goroutines, connections, the streaming
// server. Containers run on.
func (s *Server) Close() error {
	s.end()
	var errs []error
	if s.streams != nil {
		errs = append(errs, s.streams.Close())
	}
	s.mu.RLock()
	for _, c := range s.containers {
		c.stopReading()
	}
	s.mu.RUnlock()
	s.work.Wait()
	s.mu.Lock()
	for _, c := range s.containers {
		c.release()
	}
	s.mu.Unlock()
	if s.holder != nil {
		errs = append(errs, s.holder.Close())
	}
	if s.launcher != nil {
		errs = append(errs, s.launcher.Close())
	}
	return errors.Join(errs...)
}

// Destroy removes every sandbox and container with all that belongs to them,
// and the holder. Images stay. The server cannot be used afterwards.
func (s *Server) Destroy(ctx context.Context) error {
	var errs []error
	for _, p := range s.listPods() {
		errs = append(errs, s.removePod(ctx, p))
	}
	s.end()
	s.work.Wait()
	errs = append(errs, s.holder.Quit())
	g := s.holderGroup()
	errs = append(errs, g.Remove(ctx), sandbox.Unprepare(filepath.Join(s.cfg.Run, "ns")))
	g.Parent().Prune("/")
	if s.streams != nil {
		errs = append(errs, s.streams.Close())
	}
	return errors.Join(append(errs, s.launcher.Close())...)
}

// newID returns 256 random bits in hexadecimal, as every runtime does.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
