// Package lean gives memory back that a process at rest does not need.
package lean

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Rest collects garbage and returns what is free to the system, together with the
// pages of the program's own code and constants and of files that it has mapped for
// reading, such as the store's: most are used once and never again, and the kernel
// keeps those that are still used in its cache, from which they come back one by one
// at less than a microsecond each.
func Rest() error {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the program's own file: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("read the process's mappings: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		start, end, ok := unchanged(s.Text(), exe)
		if !ok {
			continue
		}
		// madvise(2) as such: the mapping is another's, not a slice of ours.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give back %x-%x: %w", start, end, errno)
		}
	}
	return s.Err()
}

// unchanged reads a line of /proc/PID/maps; ok if it is a mapping of exe that cannot
// have been written to, or of any file that is shared and only read, so that the file
// has all of it.
func unchanged(line, exe string) (start, end uintptr, ok bool) {
	var perms, offset, device, inode string
	if n, err := fmt.Sscanf(line, "%x-%x %s %s %s %s", &start, &end, &perms, &offset, &device, &inode); err != nil || n != 6 {
		return 0, 0, false
	}
	return start, end, perms == "r--s" || strings.HasSuffix(line, " "+exe) && !strings.Contains(perms, "w")
}
