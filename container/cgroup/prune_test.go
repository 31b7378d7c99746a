package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// Pods come and go beneath one parent: none finds it removed by another's end.
func TestPruneBesideCreate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making control groups needs root")
	}
	layout, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	root := layout.Group(fmt.Sprintf("/knarr-test-%s%d", filepath.Base(t.TempDir()), os.Getpid()))
	t.Cleanup(func() {
		if err := root.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := root.Create(); err != nil {
		t.Fatal(err)
	}
	// A hierarchy where only programs make groups, if the machine has one.
	others := root.everywhere()[0]
	for _, d := range root.everywhere() {
		if !slices.Contains(root.dirs(), d) {
			others = d
		}
	}
	if err := os.MkdirAll(filepath.Join(others, "pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			g := layout.Group(fmt.Sprintf("%s/pods/pod-%d", root.path, i))
			for range 300 {
				if err := g.Create(); err != nil {
					t.Error(err)
					return
				}
				// As a program does for a container of this pod.
				if err := os.MkdirAll(filepath.Join(others, "pods", filepath.Base(g.path)), 0o755); err != nil {
					t.Error(err)
					return
				}
				g.Prune(root.path)
			}
		})
	}
	wg.Wait()
	if pods := layout.Group(root.path + "/pods"); pods.Exists() {
		t.Errorf("%s is empty and still there", pods.path)
	}
}
