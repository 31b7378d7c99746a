package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	constants "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Clients since 1.31 stream over WebSockets, in two forms that runtimes do not
// speak. The server translates them, as Kubernetes does:
//
//	exec, attach:  v5.channel.k8s.io            <->  SPDY streams
//	port-forward:  SPDY/3.1+portforward.k8s.io  <->  the same SPDY bytes without the frames

// streamPing keeps the connection to an agent alive through idle streams.
const streamPing = 5 * time.Second

// translateExec joins a client's v5 WebSocket with an agent's SPDY streams.
func (s *Server) translateExec(w http.ResponseWriter, r *http.Request, target *url.URL) {
	q := r.URL.Query()
	tty := isTrue(q.Get("tty"))
	in, out, errs := isTrue(q.Get("stdin")), isTrue(q.Get("stdout")), isTrue(q.Get("stderr")) && !tty
	kind := func(open bool, as wsstream.ChannelType) wsstream.ChannelType {
		if open {
			return as
		}
		return wsstream.IgnoreChannel
	}
	channels := []wsstream.ChannelType{
		constants.StreamStdIn:  kind(in, wsstream.ReadChannel),
		constants.StreamStdOut: kind(out, wsstream.WriteChannel),
		constants.StreamStdErr: kind(errs, wsstream.WriteChannel),
		constants.StreamErr:    wsstream.WriteChannel,
		constants.StreamResize: wsstream.ReadChannel,
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		constants.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	// The library reports every connection that this side closes as an error.
	quiet := r.WithContext(logr.NewContext(r.Context(), logr.Discard()))
	_, streams, err := conn.Open(raw(w), quiet)
	if err != nil {
		return // the handshake has answered
	}
	defer conn.Close()
	// An empty message tells the client that the connection stands.
	first := constants.StreamErr
	if out {
		first = constants.StreamStdOut
	}
	if _, err := streams[first].Write(nil); err != nil {
		return
	}
	o := remotecommand.StreamOptions{Tty: tty}
	if in {
		o.Stdin = streams[constants.StreamStdIn]
	}
	if out {
		o.Stdout = streams[constants.StreamStdOut]
	}
	if errs {
		o.Stderr = streams[constants.StreamStdErr]
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var resizing sync.WaitGroup
	if tty {
		sizes := make(sizeQueue)
		o.TerminalSizeQueue = sizes
		resizing.Go(func() { sizes.read(ctx, streams[constants.StreamResize]) })
	}
	err = s.streamTo(ctx, target, o)
	if werr := json.NewEncoder(streams[constants.StreamErr]).Encode(exitStatus(err)); werr != nil {
		s.log.Debug("exit status not sent", "path", r.URL.Path, "error", werr)
	}
	cancel()
	conn.Close()
	resizing.Wait()
}

func (s *Server) streamTo(ctx context.Context, target *url.URL, o remotecommand.StreamOptions) error {
	rt, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{UpgradeTransport: s.kubelet.Transport, PingPeriod: streamPing})
	if err != nil {
		return err
	}
	e, err := remotecommand.NewSPDYExecutorRejectRedirects(rt, rt, http.MethodPost, target)
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, o)
}

// exitStatus is what the error stream says at the end of a command.
func exitStatus(err error) *metav1.Status {
	if err == nil {
		return &metav1.Status{Status: metav1.StatusSuccess}
	}
	var code exec.CodeExitError
	if errors.As(err, &code) {
		return &metav1.Status{Status: metav1.StatusFailure, Reason: constants.NonZeroExitCodeReason,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: constants.ExitCodeCauseType, Message: fmt.Sprint(code.Code)}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", err)}
	}
	status := apierrors.NewInternalError(err).Status()
	return &status
}

// translateLog sends a log over a client's WebSocket.
func (s *Server) translateLog(w http.ResponseWriter, r *http.Request, target *url.URL) error {
	req := &http.Request{Method: http.MethodGet, URL: target, Host: target.Host, Header: http.Header{}}
	resp, err := s.kubelet.Transport.RoundTrip(req.WithContext(r.Context()))
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // for the message only
		return apierrors.NewGenericServerResponse(resp.StatusCode, "get", schema.GroupResource{Resource: "pods/log"}, "", string(b), 0, false)
	}
	out := wsstream.NewReader(resp.Body, true, wsstream.NewDefaultReaderProtocols())
	_ = out.Copy(raw(w), r) // the client has gone: nobody is left to tell
	return nil
}

// sizeQueue passes terminal sizes on; it is closed when there are no more.
type sizeQueue chan remotecommand.TerminalSize

// Next implements remotecommand.TerminalSizeQueue.
func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func (q sizeQueue) read(ctx context.Context, r io.Reader) {
	defer close(q)
	for d := json.NewDecoder(r); ; {
		var size remotecommand.TerminalSize
		if d.Decode(&size) != nil {
			return
		}
		select {
		case q <- size:
		case <-ctx.Done():
			return
		}
	}
}

// tunnelPorts unwraps the SPDY connection that a client's WebSocket carries.
func (s *Server) tunnelPorts(w http.ResponseWriter, r *http.Request, target *url.URL) {
	const version = "portforward.k8s.io"
	req := &http.Request{Method: http.MethodPost, URL: target, Host: target.Host, Header: http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {version}}}
	resp, err := s.kubelet.Transport.RoundTrip(req.WithContext(r.Context()))
	if err != nil {
		writeError(w, r, apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err)))
		return
	}
	agent, ok := resp.Body.(io.ReadWriteCloser)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // for the message only
		writeError(w, r, apierrors.NewInternalError(fmt.Errorf("error upgrading connection to the node: %s: %s", resp.Status, b)))
		return
	}
	up := websocket.Upgrader{
		ReadBufferSize: 32 << 10, WriteBufferSize: 32 << 10, Subprotocols: []string{"SPDY/3.1+" + version},
		CheckOrigin: func(*http.Request) bool { return true }, // credentials are not cookies
	}
	ws, err := up.Upgrade(raw(w), r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	client := portforward.NewTunnelingConnection("server", ws)
	defer client.Close()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(client, agent)
		client.Close()
	})
	_, _ = io.Copy(agent, client) // either end closes the whole: SPDY says no more on a half
	agent.Close()
	back.Wait()
}

// raw is the writer that can be hijacked.
func raw(w http.ResponseWriter) http.ResponseWriter {
	if u, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
		return u.Unwrap()
	}
	return w
}
