package image

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	// maxManifest bounds manifests and configurations, which are held in memory.
	// Registries accept manifests of 4 MiB.
	maxManifest = 8 << 20
	// A registry that sends less than stallBytes in each stallTime is given up.
	stallTime  = time.Minute
	stallBytes = 16 << 10
	// attempts to fetch a layer that arrives broken.
	attempts = 3
)

var errTooLarge = fmt.Errorf("it is larger than %d bytes", maxManifest)

// limiter bounds the answers that are not layers.
type limiter struct{ next http.RoundTripper }

func (l limiter) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(req)
	if err != nil || isBlob(req) {
		return resp, err
	}
	if resp.ContentLength > maxManifest {
		resp.Body.Close()
		return nil, fmt.Errorf("the answer of %s: %w", req.URL.Host, errTooLarge)
	}
	resp.Body = &bounded{ReadCloser: resp.Body, left: maxManifest}
	return resp, nil
}

// bounded fails, rather than ends, at its limit.
type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// checkConfig refuses a configuration that is too large to be held.
func checkConfig(img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	if m.Config.Size > maxManifest {
		return fmt.Errorf("the image's configuration: %w", errTooLarge)
	}
	return nil
}

// errStalled is the end of a download that hardly moved.
var errStalled = errors.New("the registry sends too slowly")

// watched ends a download that stalls.
type watched struct {
	io.ReadCloser
	got     atomic.Int64
	stalled atomic.Bool
	timer   *time.Timer
}

func watch(body io.ReadCloser, every time.Duration) *watched {
	w := &watched{ReadCloser: body}
	var last int64
	w.timer = time.AfterFunc(every, func() {
		now := w.got.Load()
		if now-last < stallBytes {
			w.stalled.Store(true)
			_ = w.ReadCloser.Close() // ends the read that waits
			return
		}
		last = now
		w.timer.Reset(every)
	})
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.got.Add(int64(n))
	if err != nil && w.stalled.Load() {
		return n, errStalled
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	return w.ReadCloser.Close()
}
