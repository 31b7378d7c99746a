// Package cri is knarr's side of the Kubernetes Container Runtime Interface, v1
// (k8s.io/cri-api): how to reach a runtime. The messages and services
// themselves are those of cri-api; there is no logic here.
package cri

import (
	"fmt"
	"strings"

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

	close func() error
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

// New wraps a connection that the caller owns.
func New(conn grpc.ClientConnInterface) *Client {
	return &Client{
		Runtime: runtimeapi.NewRuntimeServiceClient(conn),
		Images:  runtimeapi.NewImageServiceClient(conn),
	}
}

// Close ends a connection made by Dial.
func (c *Client) Close() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}
