package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Group is one control group: the same path in every hierarchy that is used.
// The zero Group is not usable; see [Layout.Group].
type Group struct {
	layout Layout
	path   string // absolute, below each hierarchy's root
}

// Group names the control group at path; nothing is made yet.
func (l Layout) Group(path string) Group { return Group{l, clean(path)} }

// Path is the group's path below each hierarchy's root.
func (g Group) Path() string { return g.path }

// Parent is the group above.
func (g Group) Parent() Group { return Group{g.layout, filepath.Dir(g.path)} }

// Exists reports whether the group is there.
func (g Group) Exists() bool {
	for _, d := range g.dirs() {
		if _, err := os.Stat(d); err == nil {
			return true
		}
	}
	return false
}

// dirs are the group's folders in the hierarchies that all containers use.
func (g Group) dirs() []string {
	dirs := g.layout.controllers(used[:]...)
	if g.layout.V2 != "" {
		dirs = append(dirs, g.layout.V2)
	}
	for i := range dirs {
		dirs[i] = filepath.Join(dirs[i], g.path)
	}
	return dirs
}

func (g Group) v1(controller string) string {
	if d := g.layout.V1[controller]; d != "" {
		return filepath.Join(d, g.path)
	}
	return ""
}

func (g Group) v2() string {
	if g.layout.V2 == "" {
		return ""
	}
	return filepath.Join(g.layout.V2, g.path)
}

// Create makes the group and its missing parents; [Group.Prune] removes them
// again when they are empty.
func (g Group) Create() error {
	if err := g.makeDirs(); err != nil {
		return fmt.Errorf("making control group %s: %w", g.path, err)
	}
	return g.delegate()
}

func (g Group) makeDirs() error {
	g.layout.parents.RLock()
	defer g.layout.parents.RUnlock()
	for _, d := range g.dirs() {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// delegate turns the v2 controllers on in all parents, top down.
func (g Group) delegate() error {
	if g.layout.V2 == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(g.layout.V2, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("reading the controllers of cgroup v2: %w", err)
	}
	var want []string
	for _, c := range strings.Fields(string(data)) {
		switch c {
		case "cpu", "cpuset", "memory", "pids", "io", "hugetlb":
			want = append(want, c)
		}
	}
	if len(want) == 0 {
		return nil
	}
	dir := g.layout.V2
	for _, part := range append([]string{""}, strings.Split(filepath.Dir(g.path)[1:], "/")...) {
		dir = filepath.Join(dir, part)
		file := filepath.Join(dir, "cgroup.subtree_control")
		// A write waits until removed groups beneath have really gone, one that
		// changes nothing too; reading waits for nobody.
		data, _ := os.ReadFile(file)
		have := strings.Fields(string(data))
		// One by one and best effort: a limit that needs a missing one fails later, by name.
		for _, c := range want {
			if !slices.Contains(have, c) {
				_ = os.WriteFile(file, []byte("+"+c), 0)
			}
		}
	}
	return nil
}

// Open returns a descriptor of the v2 folder for clone3; see oci.Cgroup.
func (g Group) Open() (int, func(), error) {
	dir := g.v2()
	if dir == "" {
		return -1, func() {}, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, &os.PathError{Op: "opening control group", Path: dir, Err: err}
	}
	return fd, func() { unix.Close(fd) }, nil
}

// Join moves pid into the group's v1 hierarchies.
func (g Group) Join(pid int) error {
	dirs := g.layout.controllers(used[:]...)
	for _, c := range optional {
		if d := g.v1(c); d != "" {
			if _, err := os.Stat(d); err == nil {
				dirs = append(dirs, g.layout.V1[c])
			}
		}
	}
	for _, d := range dirs {
		if err := join(filepath.Join(d, g.path), pid); err != nil {
			return err
		}
	}
	return nil
}

// self is the calling thread, as control groups know it. Whoever names itself so is
// moved without waiting for every other thread to be in a safe place, which takes up to
// twenty milliseconds on a machine that is at rest.
var self = []byte("0")

// JoinThread moves the calling thread alone into the group's v1 hierarchies; see
// oci.Cgroup.
func (g Group) JoinThread() (leave func() error, err error) {
	if len(g.layout.V1) == 0 {
		return func() error { return nil }, nil
	}
	data, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("reading the control groups of this thread: %w", err)
	}
	was := threadGroups(string(data))
	left := map[string]string{} // hierarchy to the thread's former group in it
	g.layout.threads.RLock()
	leave = func() error {
		defer g.layout.threads.RUnlock()
		var errs []error
		for dir, path := range left {
			errs = append(errs, os.WriteFile(filepath.Join(dir, path, "tasks"), self, 0))
		}
		return errors.Join(errs...)
	}
	for _, controller := range slices.Concat(used[:], optional[:]) {
		dir := g.layout.V1[controller]
		if _, done := left[dir]; dir == "" || done {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, g.path)); err != nil {
			continue // an optional one that nobody asked for
		}
		if err := os.WriteFile(filepath.Join(dir, g.path, "tasks"), self, 0); err != nil {
			return nil, errors.Join(fmt.Errorf("moving a thread into %s: %w", filepath.Join(dir, g.path), err), leave())
		}
		left[dir] = was[controller]
	}
	return leave, nil
}

// threadGroups reads /proc/PID/cgroup, lines of the form "ID:CONTROLLERS:PATH".
func threadGroups(text string) map[string]string {
	groups := map[string]string{}
	for line := range strings.Lines(text) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for _, c := range strings.Split(f[1], ",") {
				groups[c] = f[2]
			}
		}
	}
	return groups
}

// JoinAll moves pid into all of the group's hierarchies.
func (g Group) JoinAll(pid int) error {
	if d := g.v2(); d != "" {
		if err := join(d, pid); err != nil {
			return err
		}
	}
	return g.Join(pid)
}

func join(dir string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		return fmt.Errorf("moving process %d into %s: %w", pid, dir, err)
	}
	return nil
}

// Processes lists the PIDs in the group itself, without this process, of which a thread
// may be there.
func (g Group) Processes() ([]int, error) {
	dirs := g.dirs()
	data, err := os.ReadFile(filepath.Join(dirs[len(dirs)-1], "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("listing the processes of %s: %w", g.path, err)
	}
	var pids []int
	for _, f := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		if pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Kill kills every process of the group and of those below it. A group that is
// gone has none.
func (g Group) Kill() error {
	if d := g.v2(); d != "" {
		err := os.WriteFile(filepath.Join(d, "cgroup.kill"), []byte("1"), 0)
		if err == nil || errors.Is(err, os.ErrNotExist) && !g.Exists() {
			return nil
		}
	}
	return g.KillEach() // before 5.14, and on pure v1
}

// KillEach kills like Kill, but one process at a time, until none is left to fork. The
// group can be used again: in one that was killed as a whole the kernel (seen on 6.18)
// kills whatever is cloned into it from another group later, too.
func (g Group) KillEach() error {
	for range 100 {
		pids, err := g.Processes()
		if errors.Is(err, os.ErrNotExist) || err == nil && len(pids) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		for _, pid := range pids {
			kill(pid)
		}
	}
	return fmt.Errorf("killing the processes of group %s: new ones come as fast as they are killed", g.path)
}

// kill kills a process and waits for its end, if that does not take long.
func kill(pid int) {
	const patience = 2000 // ms
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone
	}
	defer unix.Close(fd)
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience)
}

// everywhere are the group's folders in all hierarchies.
func (g Group) everywhere() []string {
	dirs := make([]string, len(g.layout.points))
	for i, p := range g.layout.points {
		dirs[i] = filepath.Join(p, g.path)
	}
	return dirs
}

// Remove removes the group, waiting for killed processes to leave it. A group
// that is gone already is no error.
func (g Group) Remove(ctx context.Context) error {
	var errs []error
	for _, d := range g.everywhere() {
		if err := g.layout.removeDir(ctx, d); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Prune removes the group and its parents up to, not including, stop, as far
// as they are empty.
func (g Group) Prune(stop string) {
	if g.path == "/" || g.path == clean(stop) || !g.removeEmpty() {
		return
	}
	g.layout.parents.Lock()
	defer g.layout.parents.Unlock()
	for p := g.Parent(); p.path != "/" && p.path != clean(stop) && p.removeEmpty(); p = p.Parent() {
	}
}

// removeEmpty removes the group unless something is in it. Whoever creates a group has
// it in the hierarchies of dirs at once, in others when a program makes one there: a
// parent that is in use in the former is left alone in the latter, too.
func (g Group) removeEmpty() bool {
	for _, d := range append(g.dirs(), g.everywhere()...) {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return false
		}
	}
	return true
}

// removeDir removes one folder and those that the container made below it. The
// kernel refuses while a killed process is still on its way out; inotify on
// cgroup.events (v2) tells when the last one has left.
func (l Layout) removeDir(ctx context.Context, dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if entries, rerr := os.ReadDir(dir); rerr == nil {
		for _, e := range entries {
			if e.IsDir() {
				if err := l.removeDir(ctx, filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	err = unix.Rmdir(dir)
	if errors.Is(err, unix.EBUSY) {
		err = l.waitEmpty(ctx, dir)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.PathError{Op: "removing control group", Path: dir, Err: err}
}

// waitEmpty waits for each process in dir to end, then removes dir.
func (l Layout) waitEmpty(ctx context.Context, dir string) error {
	for {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return err
		}
		fields := strings.Fields(string(data))
		for _, f := range fields {
			pid, err := strconv.Atoi(f)
			if err != nil || pid == 0 {
				return unix.EBUSY
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if pid == os.Getpid() { // a thread that is just forking
				l.threads.Lock()
				//lint:ignore SA2001 whoever was there has left by now
				l.threads.Unlock()
				continue
			}
			if err := waitGone(ctx, pid); err != nil {
				return err
			}
		}
		err = unix.Rmdir(dir)
		if !errors.Is(err, unix.EBUSY) || len(fields) == 0 {
			return err
		}
	}
}

func waitGone(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil // gone
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			if err != unix.EINTR { // the readiness is told once
				return err == nil && n > 0
			}
		}
	})
	return errors.Join(err, ctx.Err())
}
