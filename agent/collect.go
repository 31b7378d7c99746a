package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/node"
	"knarr.dev/knarr/agent/podspec"
)

// Housekeeping: how often, and the bounds of logs and images.
const (
	collectEvery = 10 * time.Second
	floodEvery   = 50 * time.Millisecond // of a log that grows fast
	imagesEvery  = 5 * time.Minute
	maxLogSize   = 10 << 20 // bytes of one log file
	maxLogFiles  = 5
	imagesHigh   = 85 // percent of the disk at which images are removed,
	imagesLow    = 80 // until so much is left in use
)

// collect keeps logs and images within bounds until ctx ends. Looking costs one
// stat for each running container.
func (a *Agent) collect(ctx context.Context) error {
	next, soon := a.cfg.Clock.Now().Add(imagesEvery), collectEvery
	for {
		t := a.cfg.Clock.NewTimer(soon)
		select {
		case <-t.C():
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		soon = a.rotateLogs(ctx, soon)
		if now := a.cfg.Clock.Now(); !now.Before(next) {
			next = now.Add(imagesEvery)
			if err := a.collectImages(ctx); err != nil && ctx.Err() == nil {
				a.cfg.Log.Warn("images could not be removed", "error", err)
			}
		}
	}
}

// untilFull is when to look again at a log of that size that has grown by so many bytes
// within passed: before it is too large if it goes on like this. A flood is followed
// closely, all others cost one look in a while.
func untilFull(size, grown int64, passed time.Duration) time.Duration {
	if grown <= 0 {
		return collectEvery
	}
	left := float64(max(maxLogSize-size, 0)) / float64(grown) * float64(passed)
	return time.Duration(min(max(left, float64(floodEvery)), float64(collectEvery)))
}

// rotateLogs renames log files that have grown too large and has the runtime
// open new ones. passed is for how long nobody looked; it returns when to look again.
func (a *Agent) rotateLogs(ctx context.Context, passed time.Duration) time.Duration {
	soon, sizes := collectEvery, map[string]int64{}
	defer func() { a.logSizes = sizes }()
	for _, act := range a.pods.all() {
		pod, v := act.Snapshot()
		dir := podspec.LogDir(a.cfg.LogRoot, pod.Namespace, pod.Name, string(pod.UID))
		for name, list := range v.Containers {
			if len(list) == 0 || !list[0].Running() {
				continue
			}
			path := filepath.Join(dir, podspec.LogPath(name, list[0].Restarts()))
			info, err := os.Stat(path)
			if err != nil {
				continue
			}
			size := info.Size()
			grown := size - a.logSizes[path]
			if size < maxLogSize {
				sizes[path] = size
				soon = min(soon, untilFull(size, grown, passed))
				continue
			}
			soon = min(soon, untilFull(0, grown, passed))
			if err := a.rotate(ctx, path, list[0].Id); err != nil && ctx.Err() == nil {
				a.cfg.Log.Warn("a container's log could not be rotated", "container", name, "pod", pod.Namespace+"/"+pod.Name, "error", err)
			}
		}
	}
	return soon
}

func (a *Agent) rotate(ctx context.Context, path, id string) error {
	old := path + "." + a.cfg.Clock.Now().UTC().Format("20060102-150405.000")
	if err := os.Rename(path, old); err != nil {
		return err
	}
	if _, err := a.cfg.CRI.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		// Without a new file the container goes on writing into the renamed one.
		return fmt.Errorf("reopen the log: %w", orUndo(err, os.Rename(old, path)))
	}
	rotated, err := filepath.Glob(path + ".*")
	if err != nil {
		return err
	}
	slices.Sort(rotated)
	for len(rotated) > maxLogFiles-1 {
		if err := os.Remove(rotated[0]); err != nil {
			return err
		}
		rotated = rotated[1:]
	}
	return nil
}

func orUndo(err, undo error) error {
	if undo != nil {
		return fmt.Errorf("%w (and the old name could not be restored: %w)", err, undo)
	}
	return err
}

// collectImages removes images that no container uses when the disk is nearly
// full, the largest first, until enough is free.
func (a *Agent) collectImages(ctx context.Context) error {
	total, free, err := node.Disk(a.cfg.Root)
	if err != nil || total == 0 || 100*(total-free)/total < imagesHigh {
		return err
	}
	return a.removeImages(ctx, total/100*(100-imagesLow)-free)
}

// removeImages removes images that no container uses, the largest first, until so
// many bytes are freed.
func (a *Agent) removeImages(ctx context.Context, want int64) error {
	const all = 1 << 61 // whoever wants so much wants what there is
	everything := want > all
	list, err := a.cfg.CRI.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	containers, err := a.cfg.CRI.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range containers.Containers {
		used[c.ImageRef], used[c.ImageId], used[c.Image.GetImage()] = true, true, true
	}
	slices.SortFunc(list.Images, func(x, y *runtimeapi.Image) int { return int(min(1, max(-1, int64(y.Size)-int64(x.Size)))) })
	for _, i := range list.Images {
		if want <= 0 {
			return nil
		}
		if i.Pinned || used[i.Id] || slices.ContainsFunc(append(i.RepoTags, i.RepoDigests...), func(n string) bool { return used[n] }) {
			continue
		}
		if _, err := a.cfg.CRI.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
			return fmt.Errorf("remove image %s: %w", i.Id, err)
		}
		want -= int64(i.Size)
	}
	if want > 0 && !everything {
		if n := a.node.Node(); n != nil {
			a.cfg.Recorder.Event(n, corev1.EventTypeWarning, "FreeDiskSpaceFailed", fmt.Sprintf("Failed to garbage collect required amount of images. %d bytes more must be freed.", want))
		}
	}
	return nil
}
