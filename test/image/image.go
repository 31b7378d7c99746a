// Package image builds small container images from files of this machine and
// pushes them, for tests, benchmarks and the demonstration.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"sort"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec says what is in an image.
type Spec struct {
	// Busybox adds /bin/busybox of this machine with a link for each applet.
	Busybox bool
	// Files maps paths in the image to files of this machine, made executable.
	Files map[string]string
	Cmd   []string
	Env   []string
	User  string
}

// busybox is where Debian's busybox-static puts it.
const busybox = "/bin/busybox"

var applets = []string{"sh", "cat", "sed", "ls", "echo", "sleep", "true", "false", "tar", "wget", "nc", "nslookup", "ps", "id", "env", "hostname", "mount", "ip", "kill", "test", "touch", "mkdir", "rm", "dd", "date", "httpd", "tail", "head", "grep", "seq", "printf", "stat", "vi", "tty"}

// Build makes the image.
func Build(s Spec) (v1.Image, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dirs := []string{"bin", "etc", "tmp", "root", "proc", "sys", "dev", "var"}
	for _, d := range dirs {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: mode}); err != nil {
			return nil, err
		}
	}
	files := map[string]string{}
	for k, v := range s.Files {
		files[k] = v
	}
	if s.Busybox {
		files[busybox] = busybox
		for _, a := range applets {
			if err := w.WriteHeader(&tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
				return nil, err
			}
		}
	}
	if err := text(w, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"); err != nil {
		return nil, err
	}
	if err := text(w, "etc/group", "root:x:0:\nnogroup:x:65534:\n"); err != nil {
		return nil, err
	}
	var names []string
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if err := add(w, n, files[n]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: "amd64", OS: "linux",
		Config: v1.Config{Cmd: s.Cmd, Env: append([]string{"PATH=/bin"}, s.Env...), User: s.User},
		RootFS: rootFS(img),
	})
}

func rootFS(img v1.Image) v1.RootFS {
	c, err := img.ConfigFile()
	if err != nil {
		return v1.RootFS{Type: "layers"}
	}
	return c.RootFS
}

func text(w *tar.Writer, name, content string) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := io.WriteString(w, content)
	return err
}

func add(w *tar.Writer, name, file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("image file %s: %w (apt-get install busybox-static?)", name, err)
	}
	if err := w.WriteHeader(&tar.Header{Name: path.Clean(name)[1:], Mode: 0o755, Size: int64(len(b))}); err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// Push builds the image and pushes it to a registry without TLS.
func Push(ref string, s Spec) error {
	img, err := Build(s)
	if err != nil {
		return err
	}
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(r, img)
}
