package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"knarr.dev/knarr/test/image"
)

type imageRegistry struct {
	address string
	server  *http.Server
}

func (r *imageRegistry) close() { _ = r.server.Close() }

// serveImages makes the images and serves them on loopback.
func serveImages(ctx context.Context, dir string) (*imageRegistry, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	blobs := filepath.Join(dir, "blobs")
	if err := os.Mkdir(blobs, 0o755); err != nil {
		return nil, err
	}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)))
	r := &imageRegistry{address: l.Addr().String(), server: &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}}
	go func() { _ = r.server.Serve(l) }() // ends by close
	box, err := image.Build(image.Spec{Busybox: true, Cmd: workload})
	if err != nil {
		return nil, err
	}
	pause, err := image.Build(image.Spec{Busybox: true, Cmd: []string{"sleep", "2147483647"}})
	if err != nil {
		return nil, err
	}
	big, err := synthetic(4, 50<<20, 1)
	if err != nil {
		return nil, err
	}
	layers, err := synthetic(20, 2<<20, 200)
	if err != nil {
		return nil, err
	}
	for tag, img := range map[string]v1.Image{"box:1": box, "pause:1": pause, "big:1": big, "layers:1": layers} {
		ref, err := name.ParseReference(r.address+"/"+tag, name.Insecure)
		if err != nil {
			return nil, err
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
			return nil, fmt.Errorf("push %s: %w", tag, err)
		}
	}
	return r, nil
}

// synthetic makes an image of layers of size bytes each, in files that compress to
// about a half, as programs do.
func synthetic(layers, size, files int) (v1.Image, error) {
	img := v1.Image(empty.Image)
	rnd := rand.New(rand.NewPCG(1, 2)) // the same images every time
	for i := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for f := range files {
			body := make([]byte, size/files)
			for at := 0; at < len(body); at += 8 {
				for j, v := 0, rnd.Uint64(); j < 4; j++ {
					body[at+j] = byte(v >> (8 * j)) // and four zeros
				}
			}
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("opt/%d/%d/file-%d", i, f%16, f), Mode: 0o644, Size: int64(len(body))}); err != nil {
				return nil, err
			}
			if _, err := w.Write(body); err != nil {
				return nil, err
			}
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }, tarball.WithCompressedCaching)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	return mutate.ConfigFile(img, file)
}
