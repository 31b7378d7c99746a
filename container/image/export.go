package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// Export writes images into an archive as docker save does, to file. Layers are
// packed anew from their folders, so that an image read back may have another ID.
func (s *Store) Export(ctx context.Context, refs []string, file string) (err error) {
	set := map[name.Reference]v1.Image{}
	for _, ref := range refs {
		i, err := s.Get(ref)
		if err != nil {
			return err
		}
		img, err := s.assemble(ctx, i)
		if err != nil {
			return fmt.Errorf("exporting %s: %w", ref, err)
		}
		tags := i.Tags
		if !isID(ref) {
			full, err := Normalize(ref)
			if err != nil {
				return err
			}
			tags = []string{full}
		}
		if len(tags) == 0 {
			return fmt.Errorf("%w: image %s has no name to export it by", ErrInvalid, ref)
		}
		for _, t := range tags {
			r, err := name.ParseReference(t, name.WeakValidation)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrInvalid, err)
			}
			set[r] = img
		}
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("exporting images: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(file))
		}
	}()
	return tarball.MultiRefWrite(set, f)
}

// assemble makes an image of what is kept of it.
func (s *Store) assemble(ctx context.Context, i *Image) (v1.Image, error) {
	// Nobody may take the layers away meanwhile.
	s.lease(i.Layers, 1)
	defer s.lease(i.Layers, -1)
	img := v1.Image(empty.Image)
	for _, id := range i.Layers {
		dir := s.layers.Path(id)
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			r, w := io.Pipe()
			go func() { w.CloseWithError(pack(ctx, dir, w)) }() // ends with its reader
			return r, nil
		})
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
	file.Config, file.OS, file.Architecture = i.Config, "linux", runtime.GOARCH
	return mutate.ConfigFile(img, file)
}

// pack writes a layer's folder as a tar stream, overlay's marks turned back
// into whiteouts.
func pack(ctx context.Context, dir string, to io.Writer) error {
	w := tar.NewWriter(to)
	linked := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil || rel == "." {
			return err
		}
		return packOne(w, p, rel, linked)
	})
	return errors.Join(err, w.Close())
}

func packOne(w *tar.Writer, p, rel string, linked map[uint64]string) error {
	info, err := os.Lstat(p)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("reading %s: no owner", p)
	}
	if info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0 {
		parent, base := filepath.Split(rel)
		return w.WriteHeader(&tar.Header{Name: parent + ".wh." + base, Typeflag: tar.TypeReg, Mode: 0o600})
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname, h.Format = rel, "", "", tar.FormatPAX
	// Reading changes these, and each layer is read several times.
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if info.IsDir() {
		h.Name += "/"
	}
	if info.Mode().IsRegular() && st.Nlink > 1 {
		if first, ok := linked[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return w.WriteHeader(h)
		}
		linked[st.Ino] = rel
	}
	opaque, err := attributes(p, h)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if opaque {
		return w.WriteHeader(&tar.Header{Name: h.Name + ".wh..wh..opq", Typeflag: tar.TypeReg, Mode: 0o600})
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// attributes puts the file's extended attributes into its header, and tells
// whether it is a folder that hides those below.
func attributes(p string, h *tar.Header) (opaque bool, err error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "listing attributes", Path: p, Err: err}
	}
	for _, key := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if key == "" {
			continue
		}
		value := make([]byte, 64<<10)
		m, err := unix.Lgetxattr(p, key, value)
		if err != nil {
			return false, &os.PathError{Op: "reading attribute " + key, Path: p, Err: err}
		}
		if key == "trusted.overlay.opaque" {
			opaque = string(value[:m]) == "y"
		}
		if strings.HasPrefix(key, "trusted.overlay.") || strings.HasPrefix(key, "user.overlay.") {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+key] = string(value[:m])
	}
	return opaque, nil
}
