package build

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// file is one entry of a layer.
type file struct {
	mode     int64 // with the set-id and sticky bits of tar
	typ      byte
	link     string
	open     func() (io.ReadCloser, error) // of a regular file
	size     int64
	uid, gid int
}

// layer maps paths without a leading slash to entries.
type layer map[string]file

func (l layer) folder(name string, mode int64) {
	l[name] = file{mode: mode, typ: tar.TypeDir}
}

func (l layer) text(name, content string) {
	l[name] = file{mode: 0o644, typ: tar.TypeReg, size: int64(len(content)), open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

// add copies one entry of the context, not what is in a folder.
func (l layer) add(from fs.FS, name, to string, o owner) error {
	info, err := fs.Lstat(from, name)
	if err != nil {
		return err
	}
	f := file{mode: int64(info.Mode().Perm()), uid: o.uid, gid: o.gid}
	// Whoever checked the files out may have another umask: executable or not counts.
	if o.exact {
		f.mode = tarMode(info.Mode())
	} else if f.mode&0o111 != 0 || info.IsDir() {
		f.mode = 0o755
	} else {
		f.mode = 0o644
	}
	if o.mode >= 0 {
		f.mode = o.mode
	}
	switch {
	case info.IsDir():
		f.typ = tar.TypeDir
	case info.Mode()&fs.ModeSymlink != 0:
		f.typ, f.mode = tar.TypeSymlink, 0o777
		if f.link, err = fs.ReadLink(from, name); err != nil {
			return err
		}
	case info.Mode().IsRegular():
		f.typ, f.size = tar.TypeReg, info.Size()
		f.open = func() (io.ReadCloser, error) { return from.Open(name) }
	default:
		return fmt.Errorf("%s is neither a file, a folder nor a link", name)
	}
	l[to] = f
	return nil
}

// tarMode has the bits that set IDs and the sticky one where tar has them.
func tarMode(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return bits
}

// owner is what COPY gives to all that it copies.
type owner struct {
	uid, gid int
	mode     int64 // -1: as in the context
	exact    bool  // and there to the bit
}

// pack makes the image's layer, the folders above an entry included.
func (l layer) pack() (v1.Layer, error) {
	for name := range l {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			if _, ok := l[d]; !ok {
				l.folder(d, 0o755)
			}
		}
	}
	names := make([]string, 0, len(l))
	for n := range l {
		names = append(names, n)
	}
	slices.Sort(names)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, n := range names {
		if err := l[n].write(w, n); err != nil {
			return nil, fmt.Errorf("packing /%s: %w", n, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }, tarball.WithCompressedCaching)
}

func (f file) write(w *tar.Writer, name string) error {
	h := &tar.Header{Name: name, Typeflag: f.typ, Mode: f.mode, Linkname: f.link, Uid: f.uid, Gid: f.gid}
	switch f.typ {
	case tar.TypeDir:
		h.Name += "/"
	case tar.TypeReg:
		h.Size = f.size
	}
	if err := w.WriteHeader(h); err != nil || f.open == nil {
		return err
	}
	r, err := f.open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}
