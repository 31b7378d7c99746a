package agent

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/imagegc"
	"knarr.dev/knarr/agent/logs"
)

// Housekeeping: how often, and the bounds of logs and images.
const (
	collectEvery = 10 * time.Second
	imagesEvery  = 5 * time.Minute
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
	// What is there at the start may have been there for long; what comes later is new.
	a.imagesMu.Lock()
	if _, err := a.lookAtImages(ctx); err != nil && ctx.Err() == nil {
		a.cfg.Log.Warn("images are looked at later", "error", err)
	}
	a.imagesMu.Unlock()
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

// collectImages removes images that have not been used for too long, and, when the
// disk is nearly full, those that have not been used for longest until enough is free.
func (a *Agent) collectImages(ctx context.Context) error {
	a.imagesMu.Lock()
	defer a.imagesMu.Unlock()
	list, err := a.lookAtImages(ctx)
	if err != nil {
		return err
	}
	now := a.cfg.Clock.Now()
	for _, i := range a.images.Stale(a.cfg.ImageGC, now, list) {
		if err := a.removeImage(ctx, i); err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(o imagegc.Image) bool { return o.ID == i.ID })
	}
	total, free, err := a.cfg.Disk(a.cfg.ImageRoot)
	if err != nil {
		return err
	}
	want := a.cfg.ImageGC.Excess(total, free)
	if want == 0 {
		return nil
	}
	freed, err := a.freeImages(ctx, want, list)
	if n := a.node.Node(); err == nil && freed < want && n != nil {
		a.cfg.Recorder.Event(n, corev1.EventTypeWarning, "FreeDiskSpaceFailed",
			fmt.Sprintf("Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", want, freed))
	}
	return err
}

// removeUnusedImages removes all images that may go.
func (a *Agent) removeUnusedImages(ctx context.Context) error {
	a.imagesMu.Lock()
	defer a.imagesMu.Unlock()
	list, err := a.lookAtImages(ctx)
	if err != nil {
		return err
	}
	_, err = a.freeImages(ctx, math.MaxInt64, list)
	return err
}

// freeImages removes images until want bytes are free; it tells how many are.
func (a *Agent) freeImages(ctx context.Context, want int64, list []imagegc.Image) (freed int64, err error) {
	for _, i := range a.images.Removable(a.cfg.ImageGC, a.cfg.Clock.Now(), list) {
		if freed >= want {
			break
		}
		if err := a.removeImage(ctx, i); err != nil {
			return freed, err
		}
		freed += i.Size
	}
	return freed, nil
}

func (a *Agent) removeImage(ctx context.Context, i imagegc.Image) error {
	before := a.cfg.Clock.Now()
	if _, err := a.cfg.CRI.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.ID}}); err != nil {
		return fmt.Errorf("remove image %s: %w", i.ID, err)
	}
	a.deps.Images.Removed(i.ID, before)
	a.cfg.Log.Info("image removed", "image", i.ID, "bytes", i.Size)
	return nil
}

// imageVolumes lists the images that the node's pods have as volumes.
func (a *Agent) imageVolumes() (refs []string) {
	for _, p := range a.pods.snapshots() {
		for i := range p.Spec.Volumes {
			if v := p.Spec.Volumes[i].Image; v != nil {
				refs = append(refs, v.Reference)
			}
		}
	}
	return refs
}

// lookAtImages notes which images there are and which of them containers use, and
// forgets who pulled others.
func (a *Agent) lookAtImages(ctx context.Context) ([]imagegc.Image, error) {
	before := a.cfg.Clock.Now()
	images, err := a.cfg.CRI.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	a.deps.Images.Prune(ctx, images.Images, before)
	containers, err := a.cfg.CRI.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range containers.Containers {
		used[c.ImageRef], used[c.ImageId], used[c.Image.GetImage()] = true, true, true
	}
	for _, ref := range a.imageVolumes() {
		if r, err := a.cfg.CRI.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err == nil {
			used[r.GetImage().GetId()] = true
		}
	}
	var out []imagegc.Image
	for _, i := range images.Images {
		inUse := i.Pinned || used[i.Id] || slices.ContainsFunc(slices.Concat(i.RepoTags, i.RepoDigests), func(n string) bool { return used[n] })
		out = append(out, imagegc.Image{ID: i.Id, Size: int64(i.Size), InUse: inUse})
	}
	a.images.Look(a.cfg.Clock.Now(), out)
	return out, nil
}
