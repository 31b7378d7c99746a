// Package stream serves exec, attach and port-forward under one-time URLs, as the CRI
// prescribes, in all forms in which Kubernetes' clients ask for them:
//
//	SPDY                          the kubelet, crictl
//	WebSocket, up to version 4    older clients (k8s.io/cri-streaming serves both)
//	WebSocket v5.channel.k8s.io   crictl --transport websocket; see websocket.go
//	SPDY inside of a WebSocket    the same for port-forward; see tunnel.go
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Runtime does what the streams ask for. An ended command's exit code other than 0 is
// an error of type k8s.io/utils/exec.ExitError.
type Runtime interface {
	Exec(ctx context.Context, containerID string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	Attach(ctx context.Context, containerID string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error
}

// idleTimeout ends connections on which nothing is sent, as long as in Kubernetes.
const idleTimeout = 4 * time.Hour

// timeouts bound a session.
type timeouts struct {
	idle     time.Duration
	creation time.Duration // until the client has made its streams, with SPDY
}

// Server answers the URLs that its Get methods hand out.
type Server struct {
	runtime Runtime
	base    string
	tokens  tokens
	limits  timeouts
	http    *http.Server
	done    sync.WaitGroup
	err     error
}

// Listen serves on addr, host and port; port 0 picks a free one.
func Listen(addr string, r Runtime) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for streams: %w", err)
	}
	s := newServer("http://"+l.Addr().String(), r, timeouts{idleTimeout, remotecommand.DefaultStreamCreationTimeout})
	s.done.Go(func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.err = fmt.Errorf("serving streams: %w", err)
		}
	})
	return s, nil
}

func newServer(base string, r Runtime, limits timeouts) *Server {
	s := &Server{runtime: r, base: base, limits: limits}
	mux := http.NewServeMux()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		mux.HandleFunc(method+" /exec/{token}", s.serveExec)
		mux.HandleFunc(method+" /attach/{token}", s.serveAttach)
		mux.HandleFunc(method+" /portforward/{token}", s.servePortForward)
	}
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return s
}

// Close ends the server and the connections that it still controls.
func (s *Server) Close() error {
	err := s.http.Close()
	s.done.Wait()
	return errors.Join(err, s.err)
}

// GetExec returns the URL at which the command runs, once, within a minute.
func (s *Server) GetExec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	url, err := s.url("exec", req)
	return &runtimeapi.ExecResponse{Url: url}, err
}

// GetAttach returns the URL of a container's streams.
func (s *Server) GetAttach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	url, err := s.url("attach", req)
	return &runtimeapi.AttachResponse{Url: url}, err
}

// GetPortForward returns the URL of a pod's ports.
func (s *Server) GetPortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	url, err := s.url("portforward", req)
	return &runtimeapi.PortForwardResponse{Url: url}, err
}

// wish is what requests to exec and to attach have in common.
type wish interface {
	GetContainerId() string
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

func checkStreams(r wish) error {
	switch {
	case r.GetTty() && r.GetStderr():
		return status.Error(codes.InvalidArgument, "tty and stderr cannot both be true: a terminal has one output")
	case !r.GetStdin() && !r.GetStdout() && !r.GetStderr():
		return status.Error(codes.InvalidArgument, "one of stdin, stdout, or stderr must be set")
	}
	return nil
}

func (s *Server) url(kind string, req any) (string, error) {
	token, err := s.tokens.put(req, time.Now())
	if err != nil {
		return "", err
	}
	return s.base + "/" + kind + "/" + token, nil
}

// take finds what was asked for at a URL that has not been used.
func take[R any](s *Server, w http.ResponseWriter, r *http.Request) (R, bool) {
	req, ok := s.tokens.take(r.PathValue("token"), time.Now()).(R)
	if !ok {
		http.NotFound(w, r)
	}
	return req, ok
}

func options(r wish) *remotecommand.Options {
	return &remotecommand.Options{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request) {
	req, ok := take[*runtimeapi.ExecRequest](s, w, r)
	if !ok {
		return
	}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		serveV5(w, r, options(req), s.limits.idle, func(ctx context.Context, c *streams) error {
			return s.runtime.Exec(ctx, req.ContainerId, req.Cmd, c.in, c.out, c.err, req.Tty, c.sizes)
		})
		return
	}
	remotecommand.ServeExec(w, r, adapter{s.runtime}, "", "", req.ContainerId, req.Cmd, options(req), s.limits.idle,
		s.limits.creation, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request) {
	req, ok := take[*runtimeapi.AttachRequest](s, w, r)
	if !ok {
		return
	}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		serveV5(w, r, options(req), s.limits.idle, func(ctx context.Context, c *streams) error {
			return s.runtime.Attach(ctx, req.ContainerId, c.in, c.out, c.err, req.Tty, c.sizes)
		})
		return
	}
	remotecommand.ServeAttach(w, r, adapter{s.runtime}, "", "", req.ContainerId, options(req), s.limits.idle,
		s.limits.creation, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request) {
	req, ok := take[*runtimeapi.PortForwardRequest](s, w, r)
	if !ok {
		return
	}
	opts, err := portforward.BuildV4Options(req.Port)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		t, spdy, err := openTunnel(w, r)
		if err != nil {
			return // the handshake has answered
		}
		defer t.Close()
		w, r = t, spdy
	}
	portforward.ServePortForward(w, r, adapter{s.runtime}, req.PodSandboxId, "", opts, s.limits.idle,
		s.limits.creation, portforward.SupportedProtocols)
}

// adapter lets the library call a Runtime.
type adapter struct{ r Runtime }

func (a adapter) ExecInContainer(ctx context.Context, _, _, id string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool,
	resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return a.r.Exec(ctx, id, cmd, in, out, err, tty, resize)
}

func (a adapter) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return a.r.Attach(ctx, id, in, out, err, tty, resize)
}

func (a adapter) PortForward(ctx context.Context, sandbox, _ string, port int32, stream io.ReadWriteCloser) error {
	return a.r.PortForward(ctx, sandbox, port, stream)
}
