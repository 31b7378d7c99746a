// Package stream serves exec, attach and port-forward over SPDY and WebSocket
// under one-time URLs, as the CRI prescribes.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming"
)

// Runtime does what the streams ask for.
type Runtime = streaming.Runtime

// Server answers the URLs that its Get methods hand out.
type Server struct {
	streaming.Server
	http *http.Server
	done sync.WaitGroup
	err  error
}

// Listen serves on addr, host and port; port 0 picks a free one.
func Listen(addr string, r Runtime) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for streams: %w", err)
	}
	conf := streaming.DefaultConfig
	conf.Addr = l.Addr().String()
	conf.BaseURL = &url.URL{Scheme: "http", Host: conf.Addr}
	inner, err := streaming.NewServer(conf, r)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("preparing the streaming server: %w", err)
	}
	s := &Server{Server: inner, http: &http.Server{Handler: inner, ReadHeaderTimeout: 10 * time.Second}}
	s.done.Go(func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.err = fmt.Errorf("serving streams: %w", err)
		}
	})
	return s, nil
}

// Close ends the server and the connections that it still controls.
func (s *Server) Close() error {
	err := s.http.Close()
	s.done.Wait()
	return errors.Join(err, s.err)
}

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
