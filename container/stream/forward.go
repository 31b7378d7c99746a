package stream

import (
	"context"
	"errors"
	"io"
	"net"
)

// Forward copies between a client's stream and a connection into the pod until
// both directions have ended or ctx does. It closes both.
func Forward(ctx context.Context, client io.ReadWriteCloser, pod net.Conn) error {
	stop := context.AfterFunc(ctx, func() { client.Close(); pod.Close() })
	defer stop()
	go func() {
		// Ends with the client's stream, at the latest when its connection is closed.
		_, _ = io.Copy(pod, client)
		if half, ok := pod.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err := io.Copy(client, pod)
	if errors.Is(err, io.EOF) { // the client has left
		err = nil
	}
	return errors.Join(err, pod.Close(), client.Close())
}
