package oci

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel tells of others' children, on kernels too whose pidfds tell as much.
func TestExits(t *testing.T) {
	e, err := listenExits()
	if err != nil {
		t.Skipf("process events are not to be had: %v", err)
	}
	defer e.close()
	for n, c := range []struct {
		ends string
		want int
	}{{"exit 0", 0}, {"exit 7", 7}, {"kill -9 $$", 137}, {"true & wait; exit 3", 3}} {
		// The process waits until we know it; its parent collects it at once.
		cmd := exec.Command("sh", "-c", "sh -c 'read go; "+c.ends+"' <&3 & echo $!; wait $!; true")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Args[2] = "exec 3<&0; " + cmd.Args[2]
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		} else if _, err := fmt.Sscan(line, &pid); err != nil {
			t.Fatal(err)
		}
		child, err := Open(pid)
		if err != nil {
			t.Fatal(err)
		}
		child.exit = e.follow(pid)
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		if got := told(t.Context(), child.exit); got != c.want {
			t.Errorf("%d: %s: %d, not %d", n, c.ends, got, c.want)
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		child.Close()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.awaited) > 0 {
		t.Errorf("still awaited are %v", e.awaited)
	}
}

func FuzzExitEvent(f *testing.F) {
	m := make([]byte, eventLength)
	binary.NativeEndian.PutUint32(m[eventKind:], exitEvent)
	binary.NativeEndian.PutUint32(m[eventProcess:], 5)
	binary.NativeEndian.PutUint32(m[eventProcess+4:], 5)
	binary.NativeEndian.PutUint32(m[eventProcess+8:], uint32(unix.SIGKILL))
	f.Add(m)
	f.Add(m[:40])
	f.Fuzz(func(t *testing.T, m []byte) {
		e := &exits{awaited: map[int]chan int{}}
		to := e.follow(5)
		e.event(m)
		e.event(m) // nobody waits any more
		select {
		case code := <-to:
			if code < 0 || code > 255 {
				t.Errorf("exit code %d", code)
			}
		default:
		}
	})
}
