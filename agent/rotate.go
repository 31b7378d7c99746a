package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/podspec"
)

// How often logs are looked at, so that a flood leaves little more than the files that
// are kept:
//
//	quiet ──first write──> after alarmedIn ──> grows slowly: every writtenEvery
//	  └── every collectEvery at the least  └─> grows fast: before it is too large
const (
	floodEvery   = 50 * time.Millisecond // at the most
	alarmedIn    = 100 * time.Millisecond
	writtenEvery = time.Second
)

// What a container's logs may take unless the node says otherwise.
const (
	maxLogSize  = 10 << 20 // bytes of one file
	maxLogFiles = 5
)

// untilFull is when to look again at a log of that size that has grown by so many bytes
// within passed: before it has most if it goes on like this.
func untilFull(most, size, grown int64, passed time.Duration) time.Duration {
	if grown <= 0 {
		return collectEvery
	}
	left := float64(max(most-size, 0)) / float64(grown) * float64(passed)
	return time.Duration(min(max(left, float64(floodEvery)), float64(writtenEvery)))
}

// rotation keeps the logs of running containers within bounds.
type rotation struct {
	cfg    *Config
	actors func() map[string]*pod.Actor
	clock  clock.PassiveClock
	// quiet is given the logs that nobody writes to at the moment, to tell of the next
	// write; nil: nothing tells.
	quiet func(path string) error
	sizes map[string]int64 // bytes at the last look, by path
	last  time.Time        // of the last look
}

// look renames log files that have grown too large and has the runtime open new ones.
// It returns when to look again.
func (r *rotation) look(ctx context.Context) time.Duration {
	now := r.clock.Now()
	soon, sizes, passed := collectEvery, map[string]int64{}, now.Sub(r.last)
	defer func() { r.sizes, r.last = sizes, now }()
	for _, act := range r.actors() {
		obj, v := act.Snapshot()
		dir := podspec.LogDir(r.cfg.LogRoot, obj.Namespace, obj.Name, string(obj.UID))
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
			grown := size - r.sizes[path]
			if grown < 0 { // somebody else has begun it anew
				grown = size
			}
			sizes[path] = size
			if size >= r.cfg.LogMaxSize {
				if err := r.rotate(ctx, path, list[0].Id); err != nil && ctx.Err() == nil {
					r.cfg.Log.Warn("a container's log could not be rotated", "container", name, "pod", obj.Namespace+"/"+obj.Name, "error", err)
				}
				size, sizes[path] = 0, 0
			}
			if grown == 0 && r.quiet != nil {
				_ = r.quiet(path) // a log that has gone needs no alarm
			}
			soon = min(soon, untilFull(r.cfg.LogMaxSize, size, grown, passed))
		}
	}
	return soon
}

func (r *rotation) rotate(ctx context.Context, path, id string) error {
	old := path + "." + r.clock.Now().UTC().Format("20060102-150405.000")
	if err := os.Rename(path, old); err != nil {
		return err
	}
	if _, err := r.cfg.CRI.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		// Without a new file the container goes on writing into the renamed one.
		return fmt.Errorf("reopen the log: %w", orUndo(err, os.Rename(old, path)))
	}
	rotated, err := filepath.Glob(path + ".*")
	if err != nil {
		return err
	}
	slices.Sort(rotated)
	for len(rotated) > r.cfg.LogMaxFiles-1 {
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
