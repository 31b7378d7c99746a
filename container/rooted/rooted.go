// Package rooted resolves paths below a directory the way a process that is
// chrooted there would: symbolic links, absolute ones too, and ".." never
// leave it. Everything that touches a container's file system from outside
// goes through here, because images and containers are not trusted.
package rooted

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// maxLinks bounds how many dangling links [Dir] follows, as the kernel bounds symlinks.
const maxLinks = 40

// Open opens p below the directory root. The caller closes the descriptor.
func Open(root int, p string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(root, clean(p), &how)
		// EAGAIN: a rename elsewhere raced with "..", EINTR: a signal.
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

// Dir opens the directory p below root, making what is missing with mode.
// made, when not nil, is told of each directory made.
func Dir(root int, p string, mode uint32, made func(string)) (int, error) {
	return dir(root, clean(p), mode, made, maxLinks)
}

func dir(root int, p string, mode uint32, made func(string), links int) (int, error) {
	fd, err := Open(root, p, unix.O_PATH|unix.O_DIRECTORY, 0)
	if !errors.Is(err, unix.ENOENT) || p == "." {
		return fd, err
	}
	parentPath, base := path.Split(p)
	parent, err := dir(root, clean(parentPath), mode, made, links)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	switch err := unix.Mkdirat(parent, base, mode); {
	case err == nil:
		if made != nil {
			made(p)
		}
	case errors.Is(err, unix.EEXIST):
		// A link to a directory that is not there yet: make its target.
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(parent, base, buf)
		if err != nil {
			break // made by somebody else meanwhile
		}
		if links == 0 {
			return -1, unix.ELOOP
		}
		target := string(buf[:n])
		if !path.IsAbs(target) {
			target = path.Join("/", parentPath, target)
		}
		return dir(root, clean(target), mode, made, links-1)
	default:
		return -1, fmt.Errorf("making directory %s: %w", p, err)
	}
	return Open(root, p, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// File opens p below root as a path handle, making an empty file (and its
// parents) when nothing is there: the target of a bind mount of a file. Where a
// link leads to nothing, the file is made at its end.
func File(root int, p string) (int, error) { return file(root, clean(p), maxLinks) }

func file(root int, p string, links int) (int, error) {
	fd, err := Open(root, p, unix.O_PATH, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parentPath, base := path.Split(p)
	parent, err := Dir(root, parentPath, 0o755, nil)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	fd, err = unix.Openat(parent, base, unix.O_CREAT|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if errors.Is(err, unix.ELOOP) && links > 0 {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(parent, base, buf)
		if err != nil {
			return -1, fmt.Errorf("reading link %s: %w", p, err)
		}
		target := string(buf[:n])
		if !path.IsAbs(target) {
			target = path.Join("/", parentPath, target)
		}
		return file(root, clean(target), links-1)
	}
	if err != nil {
		return -1, fmt.Errorf("making file %s: %w", p, err)
	}
	unix.Close(fd)
	return Open(root, p, unix.O_PATH, 0)
}

// clean returns p as a relative path without ".." at its start.
func clean(p string) string {
	p = path.Clean("/" + p)[1:]
	if p == "" {
		return "."
	}
	return p
}
