package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"knarr.dev/knarr/container/oci"
	"knarr.dev/knarr/container/stream"
)

// execLimit bounds what ExecSync returns of each stream, as in containerd.
const execLimit = 16 << 20

// ExecSync runs a command in a container and returns its output.
func (s *Server) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	var out, errs limited
	ectx := ctx
	if t := req.GetTimeout(); t > 0 {
		var cancel context.CancelFunc
		ectx, cancel = context.WithTimeout(ctx, time.Duration(t)*time.Second)
		defer cancel()
	}
	code, err := s.exec(ectx, req.GetContainerId(), req.GetCmd(), nil, &out, &errs, false, nil)
	if err != nil {
		if ectx.Err() != nil && ctx.Err() == nil {
			return nil, status.Errorf(codes.DeadlineExceeded, "command %q timed out after %ds", req.GetCmd(), req.GetTimeout())
		}
		return nil, fmt.Errorf("failed to exec in container %s: %w", req.GetContainerId(), err)
	}
	return &runtimeapi.ExecSyncResponse{Stdout: out.Bytes(), Stderr: errs.Bytes(), ExitCode: int32(code)}, nil
}

// limited keeps the first execLimit bytes.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), execLimit-l.Len())])
	return len(p), nil
}

// exec runs a command and waits for its end and for that of its output. When
// ctx ends the command is killed.
func (s *Server) exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errw io.Writer, tty bool,
	resize <-chan remotecommand.TerminalSize) (int, error) {
	c, err := s.container(id)
	if err != nil {
		return 0, err
	}
	c.mu.RLock()
	target, state := c.child, c.state()
	c.mu.RUnlock()
	if state != runtimeapi.ContainerState_CONTAINER_RUNNING || target == nil {
		return 0, fmt.Errorf("%w: container %s is not running", errState, c.ID)
	}
	proc, err := s.process(c)
	if err != nil {
		return 0, err
	}
	cwd := c.config().GetWorkingDir()
	if cwd == "" {
		cwd = c.image.Config.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	spec := &oci.ExecSpec{
		ID: c.ID, Args: cmd, Env: s.environment(c), Cwd: cwd, Target: target, TTY: tty, Process: *proc,
		OOMScoreAdj: c.oomScore(), Users: c.pod.users,
	}
	if tty && !c.TTY {
		spec.Env = append(spec.Env, "TERM=xterm")
	}
	var pipes execPipes
	if !tty {
		if err := pipes.open(in != nil, out != nil, errw != nil); err != nil {
			return 0, err
		}
	}
	defer pipes.close()
	child, err := c.pod.executor.Exec(ctx, spec, pipes.theirs, c.group)
	closeAll(pipes.theirs.In, pipes.theirs.Out, pipes.theirs.Err)
	if err != nil {
		return 0, err
	}
	defer child.Close()
	if tty {
		pipes.in, pipes.out = child.Terminal(), child.Terminal()
	}
	return follow(ctx, child, &pipes, in, out, errw, resize)
}

// execPipes are our ends and the command's.
type execPipes struct {
	in, out, err *os.File
	theirs       oci.Stdio
}

func (p *execPipes) open(in, out, errw bool) (err error) {
	if in {
		if p.theirs.In, p.in, err = os.Pipe(); err != nil {
			return err
		}
	}
	if out {
		if p.out, p.theirs.Out, err = os.Pipe(); err != nil {
			return err
		}
	}
	if errw {
		p.err, p.theirs.Err, err = os.Pipe()
	}
	return err
}

func (p *execPipes) close() { closeAll(p.in, p.out, p.err) }

func follow(ctx context.Context, child oci.Command, p *execPipes, in io.Reader, out, errw io.Writer,
	resize <-chan remotecommand.TerminalSize) (int, error) {
	// When the caller leaves, or its time is up, the command has no purpose.
	stop := context.AfterFunc(ctx, func() { _ = child.Signal(unix.SIGKILL) })
	defer stop()
	tty := child.Terminal() != nil
	if tty {
		ended := make(chan struct{})
		defer close(ended)
		go resizeLoop(child.Terminal(), resize, ended)
	}
	if in != nil && p.in != nil {
		go func() {
			// Ends with the client's stream, or when the command closes its input.
			_, _ = io.Copy(p.in, in)
			if tty {
				_, _ = p.in.Write([]byte{4}) // the terminal's end of file
			} else {
				p.in.Close()
			}
		}()
	}
	var readers sync.WaitGroup
	for _, r := range []struct {
		w io.Writer
		f *os.File
	}{{out, p.out}, {errw, p.err}} {
		if r.w != nil && r.f != nil {
			readers.Go(func() { _, _ = io.Copy(r.w, r.f) })
		}
	}
	code, err := child.Wait(context.WithoutCancel(ctx))
	read := make(chan struct{})
	go func() { readers.Wait(); close(read) }()
	select {
	case <-read:
	case <-time.After(drainGrace):
		// Something that the command left behind still has its output open.
		p.close()
		<-read
	}
	if ctx.Err() != nil {
		return code, ctx.Err()
	}
	return code, err
}

// drainGrace is how long the output of an ended command is waited for where a
// process that it left behind keeps it open.
const drainGrace = time.Second

func resizeLoop(console *os.File, sizes <-chan remotecommand.TerminalSize, ended <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			setSize(console, size)
		case <-ended:
			return
		}
	}
}

func setSize(console *os.File, size remotecommand.TerminalSize) {
	raw, err := console.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// Exec returns the URL at which the command will run.
func (s *Server) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := s.streamable(req.GetContainerId()); err != nil {
		return nil, err
	}
	return s.streams.GetExec(req)
}

// Attach returns the URL at which the container's streams are.
func (s *Server) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := s.streamable(req.GetContainerId()); err != nil {
		return nil, err
	}
	return s.streams.GetAttach(req)
}

// PortForward returns the URL at which the pod's ports are.
func (s *Server) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if s.streams == nil {
		return nil, errNoStreams
	}
	p.mu.RLock()
	ready := p.Ready
	p.mu.RUnlock()
	if !ready {
		return nil, fmt.Errorf("%w: sandbox %s is not ready", errState, p.ID)
	}
	return s.streams.GetPortForward(req)
}

var errNoStreams = status.Error(codes.Unimplemented, "the streaming server is off: set Config.StreamAddr")

func (s *Server) streamable(id string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	if s.streams == nil {
		return errNoStreams
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("%w: container %s is not running", errState, c.ID)
	}
	return nil
}

// streamRuntime does what the streaming server's clients ask for.
type streamRuntime struct{ s *Server }

func (r streamRuntime) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool,
	resize <-chan remotecommand.TerminalSize) error {
	code, err := r.s.exec(ctx, id, cmd, in, writer(out), writer(errw), tty, resize)
	if err != nil {
		return err
	}
	if code != 0 {
		return &utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// writer turns a nil stream into a nil interface.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

// Attach follows the container's output and feeds its input until the client
// leaves or the container ends.
func (r streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errw io.WriteCloser, _ bool,
	resize <-chan remotecommand.TerminalSize) error {
	c, err := r.s.container(id)
	if err != nil {
		return err
	}
	c.mu.RLock()
	o, state := c.output, c.state()
	c.mu.RUnlock()
	if o == nil || state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("%w: container %s is not running", errState, c.ID)
	}
	a := o.attach(writer(out), writer(errw))
	defer o.detach(a)
	ended := make(chan struct{})
	defer close(ended)
	if o.tty {
		go resizeLoop(o.out, resize, ended)
	}
	left := make(chan struct{})
	if in != nil && o.in != nil {
		go func() {
			_, _ = io.Copy(struct{ io.Writer }{o.in}, in)
			// The first client's input is the container's whole input, or its end is
			// nothing to the container and the client leaves.
			if c.config().GetStdinOnce() && !o.tty {
				o.in.Close()
			} else {
				close(left)
			}
		}()
	}
	select {
	case <-o.done:
	case <-a.failed:
	case <-left:
	case <-ctx.Done():
	}
	return nil
}

// PortForward connects to a port of the pod's loopback, from inside its network.
func (r streamRuntime) PortForward(ctx context.Context, id string, port int32, client io.ReadWriteCloser) error {
	p, err := r.s.pod(id)
	if err != nil {
		return err
	}
	p.mu.RLock()
	netns := p.spaces.Network
	p.mu.RUnlock()
	conn, err := dialIn(ctx, netns, strconv.Itoa(int(port)))
	if err != nil {
		return fmt.Errorf("connecting to port %d in sandbox %s: %w", port, p.ID, err)
	}
	return stream.Forward(ctx, client, conn)
}

// dialIn connects to localhost inside a network namespace, IPv4 before IPv6.
// The socket stays in the namespace of the thread that made it.
func dialIn(ctx context.Context, netns, port string) (net.Conn, error) {
	var fd int
	err := oci.OnThread(func() error {
		if netns != "" {
			if err := oci.EnterNetwork(netns); err != nil {
				return err
			}
		}
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			conn, err := oci.Connect(ctx, host, port)
			if err == nil {
				fd = conn
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "forward")
	defer f.Close()
	return net.FileConn(f)
}
