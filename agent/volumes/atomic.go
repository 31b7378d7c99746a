package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// file is one projected file.
type file struct {
	data []byte
	mode fs.FileMode
	uid  *int64 // owner; nil: root
}

// writeAtomic makes dir show exactly files. Content lives in a directory of its
// own to which the link ..data points; each file of dir is a link through ..data.
// Replacing that one link changes all files at once, as programs that watch
// mounted configuration expect.
func writeAtomic(dir string, files map[string]file, group *int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// MkdirAll is subject to the umask; the volume must be readable.
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	data := filepath.Join(dir, "..data")
	old, err := os.Readlink(data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if old != "" && same(filepath.Join(dir, old), files, group) {
		return links(dir, files)
	}
	next, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return err
	}
	if err := fill(next, files, group); err != nil {
		return errors.Join(err, os.RemoveAll(next))
	}
	tmp := filepath.Join(dir, "..data_tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(next), tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, data); err != nil {
		return err
	}
	if err := links(dir, files); err != nil {
		return err
	}
	if old != "" {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

func fill(dir string, files map[string]file, group *int64) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	gid := -1
	if group != nil {
		gid = int(*group)
		if err := own(dir, *group); err != nil {
			return err
		}
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
		if f.uid != nil || gid >= 0 {
			uid := -1
			if f.uid != nil {
				uid = int(*f.uid)
			}
			if err := os.Chown(path, uid, gid); err != nil {
				return fmt.Errorf("set the owner of %s: %w", path, err)
			}
		}
		if err := os.Chmod(path, permissions(f, group)); err != nil {
			return err
		}
	}
	return nil
}

// permissions adds read access of the pod's group.
func permissions(f file, group *int64) fs.FileMode {
	if group != nil {
		return f.mode | 0o040
	}
	return f.mode
}

// links makes the visible names of dir point through ..data and removes others.
func links(dir string, files map[string]file) error {
	want := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !want[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
		delete(want, e.Name())
	}
	for name := range want {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// same compares a content directory with what it ought to hold.
func same(dir string, files map[string]file, group *int64) bool {
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, ok := files[rel]
		if !ok {
			return fs.ErrNotExist
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.data) || info.Mode().Perm() != permissions(f, group).Perm() {
			return fs.ErrInvalid
		}
		n++
		return nil
	})
	return err == nil && n == len(files)
}
