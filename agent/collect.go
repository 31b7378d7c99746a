package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/logs"
	"knarr.dev/knarr/agent/node"
)

// Housekeeping: how often, and the bounds of logs and images.
const (
	collectEvery = 10 * time.Second
	imagesEvery  = 5 * time.Minute
	imagesHigh   = 85 // percent of the disk at which images are removed,
	imagesLow    = 80 // until so much is left in use
)

// collect keeps logs and images within bounds until ctx ends. Looking costs one
// stat for each running container.
func (a *Agent) collect(ctx context.Context) error {
	rotate := &rotation{cfg: &a.cfg, actors: a.pods.all, clock: a.cfg.Clock}
	var rings <-chan struct{}
	if alarm, err := logs.NewAlarm(); err != nil {
		a.cfg.Log.Warn("logs that grow fast are noticed late", "error", err)
	} else {
		defer alarm.Close()
		rings, rotate.quiet = alarm.C(), alarm.Arm
	}
	next, at := a.cfg.Clock.Now().Add(imagesEvery), a.cfg.Clock.Now().Add(collectEvery)
	for {
		t := a.cfg.Clock.NewTimer(max(0, at.Sub(a.cfg.Clock.Now())))
		soon := func() {
			t.Stop()
			if early := a.cfg.Clock.Now().Add(alarmedIn); early.Before(at) {
				at = early
			}
		}
		select {
		case <-rings:
			soon()
			continue
		case <-a.pods.began:
			soon()
			continue
		case <-t.C():
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		at = a.cfg.Clock.Now().Add(rotate.look(ctx))
		if now := a.cfg.Clock.Now(); !now.Before(next) {
			next = now.Add(imagesEvery)
			if err := a.collectImages(ctx); err != nil && ctx.Err() == nil {
				a.cfg.Log.Warn("images could not be removed", "error", err)
			}
		}
	}
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
