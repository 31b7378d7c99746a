// Package snapshot turns image layers into folders that overlay mounts share,
// and gives every container its writable folder on top of them.
package snapshot

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/rooted"
)

// ErrEscape is returned for a layer that names a path outside of itself.
var ErrEscape = errors.New("the layer names a path outside of its root")

const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	xattrPrefix    = "SCHILY.xattr."
)

// ErrFull is returned for a layer that would not leave the machine enough of its disk.
var ErrFull = errors.New("the disk is almost full: remove images, or give it more space")

// Usage is what a layer holds.
type Usage struct {
	Bytes int64 // of the regular files
	Files int64
	// Implied are folders that the layer passes through without describing
	// them: in the merged tree they keep the attributes of the layers below.
	Implied []string
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// Unpack writes the tar stream r below the folder root, translating whiteouts
// into those of overlayfs.
func Unpack(root string, r io.Reader) (Usage, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, &os.PathError{Op: "opening layer", Path: root, Err: err}
	}
	u := &unpacker{root: fd, parent: -1}
	defer u.close()
	tr := tar.NewReader(bufio.NewReaderSize(r, 64<<10))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return u.usage, fmt.Errorf("reading layer: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			return u.usage, fmt.Errorf("unpacking %q: %w", h.Name, err)
		}
	}
	// Times of folders last: making entries in them changed these.
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		if err := u.at(h.Name, func(dir int, base string) error { return setTimes(dir, base, h) }); err != nil {
			return u.usage, fmt.Errorf("setting the time of %q: %w", h.Name, err)
		}
	}
	return u.usage, nil
}

type unpacker struct {
	root   int
	parent int // folder of the entry before, as most follow in the same one
	name   string
	dirs   []*tar.Header
	usage  Usage
	budget int64 // what may be written before the disk is looked at again
}

const (
	checkEvery = 64 << 20 // bytes, and less as the disk fills
	perFile    = 64 << 10 // what a file counts for, whatever its size: inodes run out, too
	keepFree   = 20       // a twentieth of the disk is left alone
)

// room looks now and then whether the disk has room for more: a layer of some
// megabytes can hold terabytes of nothing.
func (u *unpacker) room(written int64) error {
	if u.budget -= written; u.budget >= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(u.root, &st); err != nil {
		return fmt.Errorf("looking for room on the disk: %w", err)
	}
	if st.Bavail < st.Blocks/keepFree || st.Files > 0 && st.Ffree < st.Files/keepFree {
		return ErrFull
	}
	spare := int64(st.Bavail-st.Blocks/keepFree) * st.Bsize
	u.budget = min(checkEvery, spare/2)
	return nil
}

// roomy is a file that grows as long as the disk has room.
type roomy struct {
	f *os.File
	u *unpacker
}

func (r roomy) Write(p []byte) (int, error) {
	if err := r.u.room(int64(len(p))); err != nil {
		return 0, err
	}
	return r.f.Write(p)
}

func (u *unpacker) close() {
	unix.Close(u.root)
	if u.parent >= 0 {
		unix.Close(u.parent)
	}
}

// local cleans a name from an archive.
func local(name string) (string, error) {
	p := path.Clean(strings.TrimLeft(name, "/"))
	if p == ".." || strings.HasPrefix(p, "../") || strings.IndexByte(p, 0) >= 0 {
		return "", fmt.Errorf("%w: %q", ErrEscape, name)
	}
	return p, nil
}

// at calls f with the folder that holds name, made when missing.
func (u *unpacker) at(name string, f func(dir int, base string) error) error {
	p, err := local(name)
	if err != nil {
		return err
	}
	if p == "." {
		return f(u.root, ".")
	}
	dir, base := path.Split(p)
	if u.parent < 0 || u.name != dir {
		fd, err := rooted.Dir(u.root, dir, 0o755, func(made string) { u.usage.Implied = append(u.usage.Implied, made) })
		if err != nil {
			return err
		}
		if u.parent >= 0 {
			unix.Close(u.parent)
		}
		u.parent, u.name = fd, dir
	}
	return f(u.parent, base)
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	return u.at(h.Name, func(dir int, base string) error {
		switch {
		case base == whiteoutOpaque:
			return unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d", dir), "trusted.overlay.opaque", []byte("y"), 0)
		case strings.HasPrefix(base, whiteout):
			hidden := strings.TrimPrefix(base, whiteout)
			if hidden == "" || hidden == "." || hidden == ".." {
				return ErrEscape
			}
			if err := u.clear(dir, hidden, false); err != nil {
				return err
			}
			return unix.Mknodat(dir, hidden, unix.S_IFCHR, 0)
		case base == "." && h.Typeflag != tar.TypeDir:
			return ErrEscape
		}
		u.usage.Files++
		if err := u.room(perFile); err != nil {
			return err
		}
		if err := u.make(dir, base, h, body); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeXGlobalHeader {
			return nil // its attributes are those of the file it names
		}
		return u.attributes(dir, base, h)
	})
}

// clear removes what an earlier entry left under the name; a folder stays when
// the new entry is one too.
func (u *unpacker) clear(dir int, base string, isDir bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.Unlinkat(dir, base, 0)
	}
	if isDir {
		return nil
	}
	r, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil {
		return err
	}
	defer r.Close()
	return r.RemoveAll(base)
}

func (u *unpacker) make(dir int, base string, h *tar.Header, body io.Reader) error {
	isDir := h.Typeflag == tar.TypeDir
	if base != "." {
		if err := u.clear(dir, base, isDir); err != nil {
			return err
		}
	}
	perm := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeDir:
		u.dirs = append(u.dirs, h)
		if base == "." {
			return nil
		}
		if err := unix.Mkdirat(dir, base, perm); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	case tar.TypeReg, tar.TypeGNUSparse:
		fd, err := unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), base)
		buf := copyBuffers.Get().(*[]byte)
		n, err := io.CopyBuffer(roomy{f, u}, body, *buf)
		copyBuffers.Put(buf)
		u.usage.Bytes += n
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return unix.Symlinkat(h.Linkname, dir, base)
	case tar.TypeLink:
		return u.link(dir, base, h.Linkname)
	case tar.TypeChar:
		return unix.Mknodat(dir, base, unix.S_IFCHR|perm, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		return unix.Mknodat(dir, base, unix.S_IFBLK|perm, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeFifo:
		return unix.Mknodat(dir, base, unix.S_IFIFO|perm, 0)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("entries of type %q are not known", h.Typeflag)
}

func (u *unpacker) link(dir int, base, target string) error {
	p, err := local(target)
	if err != nil {
		return err
	}
	from, name := path.Split(p)
	fd, err := rooted.Open(u.root, from, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	defer unix.Close(fd)
	if err := unix.Linkat(fd, name, dir, base, 0); err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	return nil
}

// attributes sets owner before mode, because changing the owner clears set-id bits.
func (u *unpacker) attributes(dir int, base string, h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting the owner to %d:%d: %w", h.Uid, h.Gid, err)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue // overlay's own would change what the layers mean
		}
		err := unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir, base), name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("setting attribute %s: %w", name, err)
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(dir, base, uint32(h.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("setting the mode: %w", err)
		}
	}
	if h.Typeflag == tar.TypeDir {
		// Described after all.
		for i, name := range u.usage.Implied {
			if p, _ := local(h.Name); p == name {
				u.usage.Implied = append(u.usage.Implied[:i], u.usage.Implied[i+1:]...)
				break
			}
		}
		return nil
	}
	return setTimes(dir, base, h)
}

func setTimes(dir int, base string, h *tar.Header) error {
	ts, err := unix.TimeToTimespec(h.ModTime)
	if err != nil {
		return nil // before the epoch or after the end of time: not worth an image
	}
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
