package oci

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The exit code of a process that is not our child is known, whenever its own parent
// collects it.
func TestWaitForAnothersChild(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	parent := exec.CommandContext(ctx, "sh", "-c", "while read line; do sleep 1000 & echo $!; wait $!; done 2>/dev/null")
	in, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = parent.Wait() // the last status it saw was a signal's
	})
	said := bufio.NewScanner(out)
	for i := range 1000 {
		if _, err := io.WriteString(in, "\n"); err != nil {
			t.Fatal(err)
		}
		if !said.Scan() {
			t.Fatal("no process was started")
		}
		pid, err := strconv.Atoi(said.Text())
		if err != nil {
			t.Fatal(err)
		}
		c, err := Open(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		code, err := c.Wait(ctx)
		if cerr := c.Close(); err != nil || cerr != nil {
			t.Fatal(fmt.Errorf("waiting for process %d: %w, %w", pid, err, cerr))
		}
		if code == UnknownExit {
			var u unix.Utsname
			if err := unix.Uname(&u); err == nil && olderThan(unix.ByteSliceToString(u.Release[:]), 6, 15) {
				t.Skip("kernels before 6.15 do not tell")
			}
		}
		if code != 137 {
			t.Fatalf("process %d of %d, killed, has exit code %d", i, 1000, code)
		}
	}
}

// A child that runs is not taken for one that has ended, whatever interrupts the question.
func TestWaitAmongSignals(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fd, err := dupFile(c.pidfd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if code, err := reap(fd); err != unix.EAGAIN {
		t.Errorf("while it runs it has the exit code %d (%v)", code, err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // as Go's scheduler does
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
			}
		}
	}()
	for range 100000 {
		if readable(fd) {
			t.Error("while it runs it is said to have ended")
			break
		}
	}
	close(stop)
	<-stopped
	if err := c.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code, err := c.Wait(t.Context()); code != 137 || err != nil {
		t.Errorf("killed, it has the exit code %d (%v)", code, err)
	}
}

func olderThan(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a < major || a == major && b < minor
}
