package oci

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread runs f on a thread of its own that ends with f, so that f may enter
// namespaces and leave the thread there.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go throwaway(f, done)
	return <-done
}

func throwaway(f func() error, done chan<- error) {
	// A goroutine that ends locked takes its thread with it. The main thread
	// cannot end and is what /proc/self shows, so it stays out of this.
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		inner := make(chan error, 1)
		go throwaway(f, inner)
		err := <-inner
		runtime.UnlockOSThread()
		done <- err
		return
	}
	done <- f()
}

// unshareFS gives the calling thread its own root and working directory, which
// the kernel demands before the thread may change its mount namespace.
func unshareFS() error { return unix.Unshare(unix.CLONE_FS) }
