package rooted

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestResolution(t *testing.T) {
	outside := t.TempDir()
	dir := t.TempDir()
	for link, target := range map[string]string{"abs": outside, "up": "../../../..", "dangling": "/not/there/yet", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for _, c := range []struct{ path, made string }{
		{"abs/x", filepath.Join(outside, "x")},
		{"up/y", "y"},
		{"../../z", "z"},
		{"dangling/w", "not/there/yet/w"},
	} {
		fd, err := Dir(root, c.path, 0o755, nil)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		unix.Close(fd)
		if _, err := os.Stat(filepath.Join(dir, c.made)); err != nil {
			t.Errorf("%s was not made at %s: %v", c.path, c.made, err)
		}
		fd, err = File(root, c.path+"/file")
		if err != nil {
			t.Errorf("%s/file: %v", c.path, err)
			continue
		}
		unix.Close(fd)
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("written outside: %v", left)
	}
	if _, err := Dir(root, "loop/x", 0o755, nil); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a loop answered %v", err)
	}
}
