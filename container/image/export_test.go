package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func tarLayer(t *testing.T, headers ...tar.Header) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range headers {
		h := &headers[i]
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// What is exported and read back holds the same files, whiteouts included.
func TestExport(t *testing.T) {
	img, err := mutate.AppendLayers(empty.Image,
		tarLayer(t, tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 5}, tar.Header{Name: "d/a", Typeflag: tar.TypeReg, Mode: 0o4711},
			tar.Header{Name: "d/b", Typeflag: tar.TypeLink, Linkname: "d/a"}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/d/a"},
			tar.Header{Name: "gone", Typeflag: tar.TypeReg, Mode: 0o644}, tar.Header{Name: "o/", Typeflag: tar.TypeDir, Mode: 0o755},
			tar.Header{Name: "o/old", Typeflag: tar.TypeReg, Mode: 0o644}),
		tarLayer(t, tar.Header{Name: ".wh.gone", Typeflag: tar.TypeReg}, tar.Header{Name: "o/", Typeflag: tar.TypeDir, Mode: 0o755},
			tar.Header{Name: "o/.wh..wh..opq", Typeflag: tar.TypeReg}, tar.Header{Name: "o/new", Typeflag: tar.TypeReg, Mode: 0o600}))
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Cmd: []string{"x"}, Env: []string{"A=b"}}); err != nil {
		t.Fatal(err)
	}
	s, dir := newStore(t, nil)
	from, err := layout.Write(filepath.Join(dir, "in"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := from.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "example.com/x:1"})); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if _, err := s.Import(ctx, filepath.Join(dir, "in")); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out.tar")
	if err := s.Export(ctx, []string{"example.com/x:1"}, out); err != nil {
		t.Fatal(err)
	}
	other, _ := newStore(t, nil)
	if names, err := other.Import(ctx, out); err != nil || len(names) != 1 || names[0] != "example.com/x:1" {
		t.Fatalf("read back %v, %v", names, err)
	}
	was, _ := s.Get("example.com/x:1")
	is, err := other.Get("example.com/x:1")
	if err != nil || len(is.Config.Cmd) != 1 || is.Config.Env[0] != "A=b" {
		t.Fatalf("the configuration is %+v (%v)", is, err)
	}
	for i := range was.Layers {
		var a, b bytes.Buffer
		if err := pack(ctx, s.layers.Path(was.Layers[i]), &a); err != nil {
			t.Fatal(err)
		}
		if err := pack(ctx, other.layers.Path(is.Layers[i]), &b); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("layer %d is not the same", i)
		}
	}
	if err := s.Export(ctx, []string{"example.com/none:1"}, out); err == nil {
		t.Error("an image that is not there was exported")
	}
	if err := s.Export(ctx, []string{"example.com/x:1"}, filepath.Join(dir, "none", "out.tar")); err == nil {
		t.Error("a file was written where no folder is")
	}
	if _, err := os.Stat(out); err != nil {
		t.Errorf("a failed export of another image took the file away: %v", err)
	}
}
