package cmd

import (
	"context"
	"net"
	"os"
	"syscall"

	"knarr.dev/knarr/kit/netns"
)

// parentEnv tells a process that it is a further node of another knarr's.
const parentEnv = "KNARR_PARENT"

// Descriptors that a further node has from its parent.
const (
	lifelineFD = 3 // a byte: the API can be used; its end: the parent's end
	hostFD     = 4 // the machine's network namespace
)

// parent is the process whose node this is; nil for one that runs by itself.
type parent struct {
	lifeline, host *os.File
	usable         chan struct{} // closed when the API can be used
}

// parentOf is what this process was given by its parent; nil without one.
func parentOf() *parent {
	if os.Getenv(parentEnv) == "" {
		return nil
	}
	os.Unsetenv(parentEnv)
	for _, fd := range []int{lifelineFD, hostFD} {
		syscall.CloseOnExec(fd)
	}
	// An error leaves it blocking, which costs a thread.
	_ = syscall.SetNonblock(lifelineFD, true)
	return &parent{
		lifeline: os.NewFile(lifelineFD, "lifeline"), host: os.NewFile(hostFD, "network namespace of the machine"),
		usable: make(chan struct{}),
	}
}

// dial connects from the machine's own network, where registries and the API
// server listen; nil without a parent.
func (p *parent) dial() func(ctx context.Context, network, addr string) (net.Conn, error) {
	if p == nil {
		return nil
	}
	return netns.Dial(p.host)
}

// context ends with the parent.
func (p *parent) context(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if p == nil {
		return ctx, cancel
	}
	go func() {
		defer cancel()
		b := make([]byte, 1)
		if _, err := p.lifeline.Read(b); err != nil {
			return
		}
		close(p.usable)
		_, _ = p.lifeline.Read(b) // returns when the parent has ended
	}()
	return ctx, cancel
}

// await blocks until the API can be used; false if ctx ends before.
func (p *parent) await(ctx context.Context) bool {
	if p == nil {
		return true
	}
	select {
	case <-p.usable:
		return true
	case <-ctx.Done():
		return false
	}
}
