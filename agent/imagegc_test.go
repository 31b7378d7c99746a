package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"
)

// When the disk is nearly full, images that nobody uses go, those that were used last
// last, and what cannot be freed is told.
func TestImagesGoWhenTheDiskIsFull(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	total, free := int64(100_000), int64(60_000)
	w := newWorld(t, withClock(clk), func(c *Config) {
		c.Disk = func(string) (int64, int64, error) { return total, free, nil }
	})
	for _, name := range []string{"idle", "later"} {
		w.cri.AddImage(name+":1", &runtimeapi.Image{Id: "sha256:" + name, RepoTags: []string{name + ":1"}, Size: 4000})
	}
	w.cri.AddImage("pinned:1", &runtimeapi.Image{Id: "sha256:pinned", RepoTags: []string{"pinned:1"}, Size: 4000, Pinned: true})
	a := w.run()
	w.pod("p", nil)
	w.wait("p", "running", running)
	left := func() []string {
		t.Helper()
		list, err := w.cfg.CRI.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, i := range list.Images {
			out = append(out, strings.TrimPrefix(i.Id, "sha256:"))
		}
		slices.Sort(out)
		return out
	}
	collect := func(want ...string) {
		t.Helper()
		if err := a.collectImages(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := left(); !slices.Equal(got, want) {
			t.Errorf("images %v, want %v; events:\n%s", got, want, strings.Join(w.events.list(), "\n"))
		}
	}
	collect("busybox:1", "idle", "later", "pinned")
	free = 16_000 // 84 percent in use
	collect("busybox:1", "idle", "later", "pinned")
	free = 15_000 // 5,000 bytes too many: two of the images
	collect("busybox:1", "pinned")
	w.cri.AddImage("new:1", &runtimeapi.Image{Id: "sha256:new", RepoTags: []string{"new:1"}, Size: 9000})
	collect("busybox:1", "new", "pinned") // it is too young
	w.event("Warning FreeDiskSpaceFailed Failed to garbage collect required amount of images. Attempted to free 5000 bytes, but only found 0 bytes eligible to free.")
	clk.Step(2 * time.Minute)
	collect("busybox:1", "pinned")
}
