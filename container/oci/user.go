package oci

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/rooted"
)

// Account is a user as an image's /etc/passwd and /etc/group know it.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // of which the user is a member, beside GID
	Home     string
}

// Lookup finds user, a name or a number, in the folders of an image, topmost
// first. A number that is in no file is an account all the same, a name is not.
func Lookup(layers []string, user string) (Account, error) {
	acc := Account{Home: "/"}
	n, numErr := strconv.ParseUint(user, 10, 32)
	acc.UID = uint32(n)
	name := user
	passwd, err := readTop(layers, "/etc/passwd")
	if err != nil {
		return acc, err
	}
	found := false
	eachLine(passwd, 6, func(f []string) bool {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil || f[0] != user && (numErr != nil || uid != n) {
			return true
		}
		found, name = true, f[0]
		acc.UID, acc.GID, acc.Home = uint32(uid), uint32(gid), f[5]
		return false
	})
	if !found && numErr != nil {
		return acc, fmt.Errorf("unable to find user %s: no matching entries in passwd file", user)
	}
	if !found {
		return acc, nil
	}
	group, err := readTop(layers, "/etc/group")
	if err != nil {
		return acc, err
	}
	eachLine(group, 4, func(f []string) bool {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil || uint32(gid) == acc.GID {
			return true
		}
		for _, m := range strings.Split(f[3], ",") {
			if m == name {
				acc.Groups = append(acc.Groups, uint32(gid))
			}
		}
		return true
	})
	return acc, nil
}

// LookupGroup finds a group, a name or a number.
func LookupGroup(layers []string, group string) (uint32, error) {
	if n, err := strconv.ParseUint(group, 10, 32); err == nil {
		return uint32(n), nil
	}
	data, err := readTop(layers, "/etc/group")
	if err != nil {
		return 0, err
	}
	var id uint32
	found := false
	eachLine(data, 3, func(f []string) bool {
		if n, err := strconv.ParseUint(f[2], 10, 32); err == nil && f[0] == group {
			id, found = uint32(n), true
		}
		return !found
	})
	if !found {
		return 0, fmt.Errorf("unable to find group %s: no matching entries in group file", group)
	}
	return id, nil
}

func eachLine(text string, fields int, use func([]string) bool) {
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		if f := strings.Split(strings.TrimSpace(sc.Text()), ":"); len(f) >= fields && !use(f) {
			return
		}
	}
}

// readTop reads the topmost version of a file; none at all reads as empty.
func readTop(layers []string, name string) (string, error) {
	const limit = 1 << 20
	for _, dir := range layers {
		root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &os.PathError{Op: "opening layer", Path: dir, Err: err}
		}
		fd, err := rooted.Open(root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		unix.Close(root)
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
			return "", nil // a whiteout, or nothing to be read
		}
		data, err := io.ReadAll(io.LimitReader(f, limit))
		return string(data), err
	}
	return "", nil
}
