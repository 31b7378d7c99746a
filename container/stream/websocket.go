package stream

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	constants "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// Version 5 of the protocol differs from version 4 in that a client can end its input
// and still hear the output's end. The library that serves the others stops at 4.

// streams are a client's.
type streams struct {
	in       io.Reader
	out, err io.WriteCloser
	sizes    chan remotecommand.TerminalSize // nil without a terminal
}

// serveV5 opens the streams, has run use them, and tells the client how that ended.
func serveV5(w http.ResponseWriter, r *http.Request, o *remotecommand.Options, idle time.Duration, run func(context.Context, *streams) error) {
	kind := func(open bool, as wsstream.ChannelType) wsstream.ChannelType {
		if open {
			return as
		}
		return wsstream.IgnoreChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		constants.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
			constants.StreamStdIn:  kind(o.Stdin, wsstream.ReadChannel),
			constants.StreamStdOut: kind(o.Stdout, wsstream.WriteChannel),
			constants.StreamStdErr: kind(o.Stderr, wsstream.WriteChannel),
			constants.StreamErr:    wsstream.WriteChannel,
			constants.StreamResize: wsstream.ReadChannel,
		}},
	})
	conn.SetIdleTimeout(idle)
	// The library reports every connection that this side closes as an error.
	_, ch, err := conn.Open(w, r.WithContext(logr.NewContext(r.Context(), logr.Discard())))
	if err != nil {
		return // the handshake has answered
	}
	// An empty message tells the client that the connection stands.
	first := constants.StreamErr
	if o.Stdout {
		first = constants.StreamStdOut
	}
	if _, err := ch[first].Write(nil); err != nil {
		conn.Close()
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	var resizing sync.WaitGroup
	defer resizing.Wait()
	defer conn.Close()
	defer cancel()
	c := &streams{}
	if o.Stdin {
		c.in = ch[constants.StreamStdIn]
	}
	if o.Stdout {
		c.out = ch[constants.StreamStdOut]
	}
	if o.Stderr {
		c.err = ch[constants.StreamStdErr]
	}
	if o.TTY {
		c.sizes = make(chan remotecommand.TerminalSize)
		resizing.Go(func() { readSizes(ctx, ch[constants.StreamResize], c.sizes) })
	}
	// The client may be gone: then nobody is left to tell.
	_ = json.NewEncoder(ch[constants.StreamErr]).Encode(outcomeOf(run(ctx, c)))
}

func readSizes(ctx context.Context, r io.Reader, sizes chan<- remotecommand.TerminalSize) {
	defer close(sizes)
	for d := json.NewDecoder(r); ; {
		var size remotecommand.TerminalSize
		if d.Decode(&size) != nil {
			return
		}
		select {
		case sizes <- size:
		case <-ctx.Done():
			return
		}
	}
}

// outcome is the part of a metav1.Status that clients read from the error stream.
type outcome struct {
	Status  string   `json:"status"`
	Reason  string   `json:"reason,omitempty"`
	Message string   `json:"message,omitempty"`
	Code    int      `json:"code,omitempty"`
	Details *details `json:"details,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

func outcomeOf(err error) outcome {
	if err == nil {
		return outcome{Status: "Success"}
	}
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return outcome{Status: "Failure", Reason: string(constants.NonZeroExitCodeReason), Message: "command terminated with non-zero exit code: " + err.Error(),
			Details: &details{[]cause{{string(constants.ExitCodeCauseType), strconv.Itoa(exit.ExitStatus())}}}}
	}
	return outcome{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError, Message: err.Error()}
}
