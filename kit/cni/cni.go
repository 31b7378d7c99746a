// Package cni lets a foreign container runtime attach its sandboxes to a node's
// network by the Container Network Interface
// (https://www.cni.dev/docs/spec, versions 0.3.0 to 1.1.0).
//
//	runtime ─exec─> plugin (Plugin) ─unix socket─> the node's process (Serve) ─> Network
//
// The plugin keeps no state and knows nothing but the socket: the process that owns
// the network does the work. While that process is away, the plugin says "try again
// later", which runtimes pass on and agents heed.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Network is what sandboxes are attached to.
type Network interface {
	// Attach gives the network namespace at path netns a link eth0 and addresses; the
	// same id has the same ones until Detach.
	Attach(ctx context.Context, id, netns string) ([]netip.Addr, error)
	// Detach takes them back; an unknown id is no error.
	Detach(ctx context.Context, id string) error
	// Attached lists who has which addresses.
	Attached() map[string][]netip.Addr
}

// timeout bounds one request on both sides.
const timeout = 30 * time.Second

// request is what the plugin asks of the server: one a connection.
type request struct {
	Command   string `json:"command"`
	Container string `json:"container"`
	Netns     string `json:"netns,omitempty"`
}

type response struct {
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Gateway   netip.Addr   `json:"gateway,omitzero"`
	Error     string       `json:"error,omitempty"`
}

// Serve answers plugins on l until ctx ends. gateway is the pods' next hop.
func Serve(ctx context.Context, l net.Listener, n Network, gateway netip.Addr, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("serve CNI plugins on %s: %w", l.Addr(), err)
		}
		open.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(timeout)) // a Unix socket takes it
			var q request
			if err := json.NewDecoder(conn).Decode(&q); err != nil {
				return // no plugin
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			a := response{Gateway: gateway}
			if err := a.answer(ctx, n, q); err != nil {
				a.Error = err.Error()
				log.Warn("a sandbox's network", "command", q.Command, "sandbox", q.Container, "error", err)
			}
			_ = json.NewEncoder(conn).Encode(a) // the plugin has gone: nobody is left to tell
		})
	}
}

func (a *response) answer(ctx context.Context, n Network, q request) (err error) {
	switch q.Command {
	case "ADD":
		a.Addresses, err = n.Attach(ctx, q.Container, q.Netns)
		return err
	case "DEL":
		return n.Detach(ctx, q.Container)
	case "CHECK":
		if a.Addresses = n.Attached()[q.Container]; len(a.Addresses) == 0 {
			return fmt.Errorf("sandbox %s has no address", q.Container)
		}
		return nil
	case "STATUS":
		return nil
	}
	return errors.New("unknown command " + q.Command)
}

// ask sends a request to the server behind a socket.
func ask(socket string, q request) (*response, error) {
	conn, err := net.DialTimeout("unix", socket, timeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(conn).Encode(q); err != nil {
		return nil, err
	}
	var a response
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return nil, err
	}
	return &a, nil
}
