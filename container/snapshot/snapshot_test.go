package snapshot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		body := h.Linkname
		if h.Typeflag != tar.TypeReg {
			body = ""
		} else {
			h.Linkname = ""
		}
		h.Size = int64(len(body))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// file has its content in Linkname, for brevity.
func file(name, content string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Linkname: content}
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root, for owners and whiteouts")
	}
}

func TestUnpack(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	owned := file("a/owned", "x")
	owned.Uid, owned.Gid, owned.Mode = 1000, 1001, 0o4711
	u, err := Unpack(dir, bytes.NewReader(archive(t,
		tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o700}, owned,
		tar.Header{Name: "a/hard", Typeflag: tar.TypeLink, Linkname: "a/owned"},
		tar.Header{Name: "a/soft", Typeflag: tar.TypeSymlink, Linkname: "/abs/target"},
		tar.Header{Name: "a/.wh.gone", Typeflag: tar.TypeReg},
		tar.Header{Name: "opaque/", Typeflag: tar.TypeDir}, tar.Header{Name: "opaque/.wh..wh..opq", Typeflag: tar.TypeReg},
		file("implied/deep/f", "content"), file("twice", "old"), file("twice", "new"),
	)))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "a/owned"), &st); err != nil || st.Uid != 1000 || st.Gid != 1001 || st.Mode&0o7777 != 0o4711 || st.Nlink != 2 {
		t.Errorf("a/owned is %+v (%v)", st, err)
	}
	if target, err := os.Readlink(filepath.Join(dir, "a/soft")); target != "/abs/target" {
		t.Errorf("a/soft leads to %q (%v)", target, err)
	}
	if err := unix.Lstat(filepath.Join(dir, "a/gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("the whiteout is %+v (%v)", st, err)
	}
	value := make([]byte, 8)
	if n, err := unix.Getxattr(filepath.Join(dir, "opaque"), "trusted.overlay.opaque", value); err != nil || string(value[:n]) != "y" {
		t.Errorf("the opaque mark is %q (%v)", value[:max(n, 0)], err)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "twice")); string(data) != "new" {
		t.Errorf("an entry that comes twice holds %q", data)
	}
	if fmt.Sprint(u.Implied) != "[implied implied/deep]" {
		t.Errorf("implied folders: %v", u.Implied)
	}
}

func TestUnpackStaysInside(t *testing.T) {
	needRoot(t)
	for name, entries := range map[string][]tar.Header{
		"dots":             {file("../escaped", "x")},
		"dots inside":      {file("a/../../escaped", "x")},
		"hard link":        {{Name: "l", Typeflag: tar.TypeLink, Linkname: "../outside"}},
		"whiteout of dots": {{Name: "a/.wh...", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "root")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if _, err := Unpack(dir, bytes.NewReader(archive(t, entries...))); !errors.Is(err, ErrEscape) {
				t.Errorf("unpacking answered %v", err)
			}
		})
	}
	// Links out of the layer are kept, and lead writers to the layer's own root.
	outside := t.TempDir()
	dir := t.TempDir()
	_, err := Unpack(dir, bytes.NewReader(archive(t,
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: outside}, file("link/file", "x"),
		tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: "../../../../.."}, file("up/file", "x"))))
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("a link led out of the layer: %v", left)
	}
	for _, p := range []string{filepath.Join(dir, outside, "file"), filepath.Join(dir, "file")} {
		if _, err := os.Stat(p); err != nil {
			t.Error(err)
		}
	}
}

func TestStore(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	plain := archive(t, file("f", "hello"))
	id := fmt.Sprintf("sha256:%x", sha256.Sum256(plain))
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	w.Write(plain)
	w.Close()
	opened := 0
	open := func(data []byte) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { opened++; return io.NopCloser(bytes.NewReader(data)), nil }
	}
	ctx := context.Background()
	other := "sha256:" + strings.Repeat("0", 64)
	if err := s.Add(ctx, other, open(plain)); err == nil || !strings.Contains(err.Error(), "corrupt") {
		t.Errorf("a layer with another digest answered %v", err)
	}
	if err := s.Add(ctx, id, open(zipped.Bytes()[:zipped.Len()-12])); err == nil {
		t.Error("half a layer was taken")
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) > 0 || s.Has(id) {
		t.Errorf("failures left %v", left)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Add(cancelled, id, open(plain)); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call answered %v", err)
	}
	opened = 0
	for range 2 {
		if err := s.Add(ctx, id, open(zipped.Bytes())); err != nil {
			t.Fatal(err)
		}
	}
	if data, _ := os.ReadFile(filepath.Join(s.Path(id), "f")); string(data) != "hello" || opened != 1 {
		t.Errorf("the layer holds %q, opened %d times", data, opened)
	}
	if err := s.Sweep(map[string]bool{id: true}); err != nil || !s.Has(id) {
		t.Errorf("sweeping took what was to be kept (%v)", err)
	}
	if err := s.Sweep(nil); err != nil || s.Has(id) {
		t.Errorf("sweeping kept what nobody wanted (%v)", err)
	}
}

func FuzzUnpack(f *testing.F) {
	needRoot(f)
	f.Add(archive(f, file("a/b", "x"), tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, file("l/c", "y")))
	f.Add(archive(f, tar.Header{Name: "a/.wh.b", Typeflag: tar.TypeReg}))
	f.Fuzz(func(t *testing.T, data []byte) {
		above := t.TempDir()
		dir := filepath.Join(above, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = Unpack(dir, bytes.NewReader(data))
		if left, _ := os.ReadDir(above); len(left) != 1 {
			t.Errorf("unpacking wrote outside: %v", left)
		}
	})
}
