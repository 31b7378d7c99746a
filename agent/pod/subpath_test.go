package pod

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// bound returns a place for a part of a volume, which is cleared at the end.
func bound(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	target := filepath.Join(t.TempDir(), "pod", "part")
	t.Cleanup(func() {
		for unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
	})
	return target
}

func TestSubPath(t *testing.T) {
	target, root := bound(t), t.TempDir()
	for _, bad := range []string{"../x", "/etc", "a/../../x"} {
		if _, err := subPath(root, bad, target); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
	if err := os.Chmod(root, 0o777); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink("/etc", filepath.Join(root, "link")))
	must(os.WriteFile(filepath.Join(root, "file"), []byte("mine"), 0o600))
	// What leads out leads nowhere: the volume has no etc/passwd.
	if _, err := subPath(root, "link/passwd", target); err == nil {
		if _, err := os.Stat(filepath.Join(target, "root")); err == nil {
			t.Error("a link led out of the volume")
		}
		if b, _ := os.ReadFile(target); strings.Contains(string(b), "root:") {
			t.Error("a link led out of the volume")
		}
	}
	// Made as it is missing, as open as the volume.
	got, err := subPath(root, "a/b", target)
	if err != nil || got != target {
		t.Fatal(got, err)
	}
	if info, err := os.Stat(filepath.Join(root, "a/b")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("%v, %v", info, err)
	}
	must(os.WriteFile(filepath.Join(root, "a/b/x"), []byte("y"), 0o600))
	if b, err := os.ReadFile(filepath.Join(target, "x")); err != nil || string(b) != "y" {
		t.Errorf("%q, %v", b, err)
	}
	// The next start replaces it, also by a file.
	for range 2 {
		if _, err := subPath(root, "file", target); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(target); err != nil || string(b) != "mine" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// A container that swaps a folder of its volume for a link to the node's files, again
// and again while another container starts, never has those files shown.
func TestSubPathRace(t *testing.T) {
	target, root, outside := bound(t), t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "dir/part"), 0o777))
	must(os.MkdirAll(filepath.Join(outside, "part"), 0o777))
	must(os.WriteFile(filepath.Join(outside, "part/secret"), []byte("x"), 0o600))
	must(os.Symlink(outside, filepath.Join(root, "link")))
	done := make(chan struct{})
	var attacker sync.WaitGroup
	attacker.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, "dir"), unix.AT_FDCWD, filepath.Join(root, "link"), unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	shown, won := 0, 0
	for range 2000 {
		if _, err := subPath(root, "dir/part", target); err != nil {
			continue // caught in the act
		}
		shown++
		if _, err := os.Stat(filepath.Join(target, "secret")); err == nil {
			won++
		}
	}
	close(done)
	attacker.Wait()
	if won > 0 {
		t.Errorf("%d of %d times the node's files were shown", won, shown)
	}
	if shown == 0 {
		t.Error("no start went through: the race was not run")
	}
	t.Logf("%d of 2000 starts went through", shown)
}
