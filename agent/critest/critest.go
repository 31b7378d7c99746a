// Package critest is a container runtime in memory, for tests of what speaks to
// runtimes: sandboxes and containers change state as a real runtime's do and
// events are sent, but nothing runs. Containers live until a test ends them.
package critest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/cri"
)

// T is what of testing.TB is needed.
type T interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
}

// Runtime is the fake. Its exported functions may be set before use; they run
// without its lock.
type Runtime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	// Fail, if set, is asked before every call with the method's name and a
	// detail: the image of a pull, the container's name of create and start.
	Fail func(method, detail string) error
	// OnPull, if set, is asked before every pull, as its registry.
	OnPull func(*runtimeapi.PullImageRequest) error
	// OnExec, if set, answers ExecSync.
	OnExec func(container string, cmd []string) (code int32, out string)
	// OnStop, if set, is called before a container is stopped, with its name and
	// the timeout in seconds.
	OnStop func(name string, timeout int64)
	// Handlers are what Status tells of the runtime's handlers.
	Handlers []*runtimeapi.RuntimeHandler
	// IP is the address of every sandbox; empty means 10.9.0.1.
	// NoEvents is set before the start, for a runtime without them.
	NoEvents bool
	IP       string

	mu         sync.Mutex
	seq        int
	sandboxes  map[string]*runtimeapi.PodSandboxStatus
	configs    map[string]*runtimeapi.PodSandboxConfig
	containers map[string]*Container
	images     map[string]*runtimeapi.Image
	pulls      []*runtimeapi.PullImageRequest
	streams    map[chan *runtimeapi.ContainerEventResponse]bool
	calls      []string
	changed    chan struct{}
}

// Sandboxes lists the configurations of the sandboxes that were run, by ID.
func (r *Runtime) Sandboxes() map[string]*runtimeapi.PodSandboxConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.configs)
}

// Container is one container of the fake.
type Container struct {
	Status  *runtimeapi.ContainerStatus
	Sandbox string
	Config  *runtimeapi.ContainerConfig
}

// New returns a runtime without anything in it.
func New() *Runtime {
	return &Runtime{sandboxes: map[string]*runtimeapi.PodSandboxStatus{}, containers: map[string]*Container{}, configs: map[string]*runtimeapi.PodSandboxConfig{},
		images: map[string]*runtimeapi.Image{}, streams: map[chan *runtimeapi.ContainerEventResponse]bool{}, changed: make(chan struct{})}
}

// Client serves the runtime in memory and returns a client of it.
func (r *Runtime) Client(t T) *cri.Client {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, r)
	runtimeapi.RegisterImageServiceServer(s, r)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///critest", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); s.Stop(); <-done })
	return cri.New(conn)
}

// AddImage puts an image into the store.
func (r *Runtime) AddImage(name string, image *runtimeapi.Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[name] = image
}

// Pulls lists the pulls so far.
func (r *Runtime) Pulls() []*runtimeapi.PullImageRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*runtimeapi.PullImageRequest(nil), r.pulls...)
}

// Calls lists the changing calls so far, as "method detail".
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.calls...)
}

// Containers lists the containers by name, oldest first.
func (r *Runtime) Containers(name string) []*Container {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.named(name)
}

func (r *Runtime) named(name string) []*Container {
	var out []*Container
	for i := 0; i <= r.seq; i++ {
		if c := r.containers[fmt.Sprintf("c%d", i)]; c != nil && (name == "" || c.Status.Metadata.Name == name) {
			out = append(out, &Container{Status: clone(c.Status), Sandbox: c.Sandbox, Config: c.Config})
		}
	}
	return out
}

// Empty tells whether neither sandbox nor container is left.
func (r *Runtime) Empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes) == 0 && len(r.containers) == 0
}

// Followed tells whether somebody is being sent events.
func (r *Runtime) Followed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.streams) > 0
}

// Wait blocks until ok holds; it is asked again after every change.
func (r *Runtime) Wait(ctx context.Context, ok func(*Runtime) bool) error {
	for {
		r.mu.Lock()
		ch := r.changed
		r.mu.Unlock()
		if ok(r) {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Exit ends the newest container of that name with a code.
func (r *Runtime) Exit(name string, code int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.named(name)
	if len(list) > 0 {
		r.exit(r.containers[list[len(list)-1].Status.Id], code, "")
	}
}

// ExitAt is Exit with a time of end.
func (r *Runtime) ExitAt(name string, code int32, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.named(name)
	if len(list) > 0 {
		c := r.containers[list[len(list)-1].Status.Id]
		// The old status may be on its way to a client: it is not changed.
		c.Status = clone(c.Status)
		c.Status.FinishedAt = at.UnixNano()
		r.exit(c, code, "")
	}
}

// KillSandboxes makes every sandbox not ready, as when its network died.
func (r *Runtime) KillSandboxes() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.sandboxes {
		down := proto.Clone(s).(*runtimeapi.PodSandboxStatus)
		down.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		r.sandboxes[id] = down
		r.send(id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, down, nil)
	}
}

// BreakStreams ends every event stream.
func (r *Runtime) BreakStreams() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ch := range r.streams {
		close(ch)
		delete(r.streams, ch)
	}
}

func clone(s *runtimeapi.ContainerStatus) *runtimeapi.ContainerStatus {
	return proto.Clone(s).(*runtimeapi.ContainerStatus)
}

func (r *Runtime) exit(c *Container, code int32, reason string) {
	if c.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		return
	}
	st := clone(c.Status)
	st.State, st.ExitCode, st.Reason = runtimeapi.ContainerState_CONTAINER_EXITED, code, reason
	if st.FinishedAt == 0 {
		st.FinishedAt = time.Now().UnixNano()
	}
	if st.Reason == "" {
		st.Reason = "Completed"
		if code != 0 {
			st.Reason = "Error"
		}
	}
	c.Status = st
	r.send(st.Id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, r.sandboxes[c.Sandbox], st)
}

func (r *Runtime) send(id string, kind runtimeapi.ContainerEventType, box *runtimeapi.PodSandboxStatus, st *runtimeapi.ContainerStatus) {
	ev := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano(), PodSandboxStatus: box}
	if st != nil {
		ev.ContainersStatuses = []*runtimeapi.ContainerStatus{st}
	}
	for ch := range r.streams {
		ch <- ev
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Runtime) call(method, detail string) error {
	if r.Fail != nil {
		if err := r.Fail(method, detail); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, method+" "+detail)
	return nil
}

func notFound(kind, id string) error {
	return status.Errorf(codes.NotFound, "%s %q not found", kind, id)
}
