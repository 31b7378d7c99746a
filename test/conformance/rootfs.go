package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// entry is one file of an image.
type entry struct {
	mode   int64
	body   []byte
	link   string
	folder bool
}

// rootfs is what an image holds, by path without a leading slash.
type rootfs map[string]entry

// baseFS has the folders and accounts that every image has.
func baseFS() rootfs {
	fs := rootfs{}
	for _, d := range []string{"bin", "dev", "etc", "home", "proc", "root", "sys", "usr/bin", "usr/local/bin", "usr/sbin", "var/run", "uploads"} {
		fs[d] = entry{folder: true, mode: 0o755}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		fs[d] = entry{folder: true, mode: 0o1777}
	}
	fs.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	fs.text("etc/group", "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n")
	// A spec looks for the name of the system that upstream's images are made of.
	fs.text("etc/os-release", "ID=debian\nNAME=\"Debian GNU/Linux in the place of Alpine Linux\"\n")
	fs.text("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	return fs
}

func (fs rootfs) text(name, body string) { fs[name] = entry{mode: 0o644, body: []byte(body)} }

func (fs rootfs) link(name, to string) { fs[name] = entry{mode: 0o777, link: to} }

// file adds a file of this machine.
func (fs rootfs) file(name, from string, mode int64) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("image file %s: %w: run demo/setup and test/conformance/setup", name, err)
	}
	fs[name] = entry{mode: mode, body: b}
	return nil
}

// program adds a program of this machine with the libraries that it loads.
func (fs rootfs) program(name, from string) error {
	if err := fs.file(name, from, 0o755); err != nil {
		return err
	}
	out, err := exec.Command("ldd", from).Output()
	if err != nil {
		return nil // static
	}
	for _, f := range strings.Fields(string(out)) {
		if !strings.HasPrefix(f, "/") {
			continue
		}
		lib := strings.TrimPrefix(f, "/")
		if _, ok := fs[lib]; ok {
			continue
		}
		if err := fs.file(lib, f, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// busybox adds busybox and a link for each of its applets that is not there yet.
func (fs rootfs) busybox() error {
	const box = "/bin/busybox"
	if err := fs.file(box[1:], box, 0o755); err != nil {
		return err
	}
	out, err := exec.Command(box, "--list").Output()
	if err != nil {
		return fmt.Errorf("list the applets of %s: %w", box, err)
	}
	for _, a := range strings.Fields(string(out)) {
		if _, ok := fs["bin/"+a]; !ok {
			fs.link("bin/"+a, "busybox")
		}
	}
	return nil
}

// layer packs the files, folders before what they hold.
func (fs rootfs) layer() (v1.Layer, error) {
	for name := range fs {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			if _, ok := fs[d]; !ok {
				fs[d] = entry{folder: true, mode: 0o755}
			}
		}
	}
	var names []string
	for n := range fs {
		names = append(names, n)
	}
	slices.Sort(names)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, n := range names {
		e := fs[n]
		h := &tar.Header{Name: n, Mode: e.mode, Size: int64(len(e.body))}
		switch {
		case e.folder:
			h.Typeflag, h.Name = tar.TypeDir, n+"/"
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		if _, err := w.Write(e.body); err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
}

// image makes an image of layers, with the configuration given.
func image(conf v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS = "amd64", "linux"
	conf.Env = append([]string{"PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin:/"}, conf.Env...)
	file.Config = conf
	return mutate.ConfigFile(img, file)
}

// find looks a program up where Debian puts programs.
func find(name string) string {
	for _, dir := range []string{"/bin", "/usr/bin", "/sbin", "/usr/sbin"} {
		if p := filepath.Join(dir, name); exists(p) {
			return p
		}
	}
	return name
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}
