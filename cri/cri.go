// Package cri is knarr's side of the Kubernetes Container Runtime Interface, v1
// (k8s.io/cri-api): how to reach a runtime. The messages and services
// themselves are those of cri-api; there is no logic here.
package cri

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MaxMessage is the largest message in bytes accepted from a runtime; lists of
// many containers exceed gRPC's default of 4 MiB.
const MaxMessage = 16 << 20

// Client speaks to one runtime.
type Client struct {
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	close   func() error
	observe atomic.Pointer[Observer]
}

// Observer is told of every finished call: its name, such as RunPodSandbox, how long
// it took and how it ended. It must be quick and may be called from many goroutines.
type Observer func(method string, took time.Duration, err error)

// Observe has fn told of all calls that begin from now on.
func (c *Client) Observe(fn Observer) { c.observe.Store(&fn) }

// observed is a connection that tells the client's observer.
type observed struct {
	grpc.ClientConnInterface
	client *Client
}

// Invoke implements grpc.ClientConnInterface.
func (o observed) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	fn := o.client.observe.Load()
	if fn == nil {
		return o.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	}
	start := time.Now()
	err := o.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	(*fn)(path.Base(method), time.Since(start), err)
	return err
}

// Dial prepares a connection to the runtime that listens on endpoint, a Unix
// socket path or a unix:// URL. The connection is made at the first call, so an
// absent runtime shows there and not here.
func Dial(endpoint string) (*Client, error) {
	target := endpoint
	if !strings.Contains(target, "://") {
		target = "unix://" + target
	}
	if !strings.HasPrefix(target, "unix://") {
		return nil, fmt.Errorf("runtime endpoint %q: only unix sockets are supported; use unix:///path/to.sock", endpoint)
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)))
	if err != nil {
		return nil, fmt.Errorf("runtime endpoint %q: %w", endpoint, err)
	}
	c := New(conn)
	c.close = conn.Close
	return c, nil
}

// DialBoth is Dial for a runtime whose image service listens elsewhere; an empty
// images means that it does not.
func DialBoth(endpoint, images string) (*Client, error) {
	c, err := Dial(endpoint)
	if err != nil || images == "" || images == endpoint {
		return c, err
	}
	other, err := Dial(images)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	first := c.close
	c.Images = other.Images
	c.close = func() error { return errors.Join(first(), other.Close()) }
	return c, nil
}

// New wraps a connection that the caller owns.
func New(conn grpc.ClientConnInterface) *Client {
	c := &Client{}
	conn = observed{conn, c}
	c.Runtime, c.Images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return c
}

// Close ends a connection made by Dial.
func (c *Client) Close() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}
