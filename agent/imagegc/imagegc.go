// Package imagegc decides which images a node removes: those that no container uses,
// the ones that have not been used for longest first. It is pure.
// https://kubernetes.io/docs/concepts/architecture/garbage-collection/#containers-images
package imagegc

import (
	"cmp"
	"errors"
	"slices"
	"time"
)

// Config says when images are removed.
type Config struct {
	// High and Low are percent of the disk: from High in use on images are removed, until
	// Low is.
	High, Low int
	// Counted is how many bytes of a larger disk these are percent of: of 64 GiB, 15 % are
	// to be free of a terabyte too. 0: all.
	Counted int64
	// MinAge is how long an image must be there before it is removed.
	MinAge time.Duration
	// MaxAge removes images that have not been used for so long, however much is free; 0:
	// none is.
	MaxAge time.Duration
}

// Default are a kubelet's own values, but that a large disk, on which other things may
// lie, does not have to be as empty as they ask.
func Default() Config {
	return Config{High: 85, Low: 80, Counted: 64 << 30, MinAge: 2 * time.Minute}
}

// Validate finds what cannot be meant.
func (c Config) Validate() error {
	switch {
	case c.High < 0 || c.High > 100:
		return errors.New("imageGCHighThresholdPercent must be from 0 to 100")
	case c.Low < 0 || c.Low >= c.High:
		return errors.New("imageGCLowThresholdPercent must be from 0 to less than imageGCHighThresholdPercent")
	case c.MinAge < 0:
		return errors.New("imageMinimumGCAge must not be negative")
	case c.MaxAge < 0 || c.MaxAge > 0 && c.MaxAge <= c.MinAge:
		return errors.New("imageMaximumGCAge must be 0 or more than imageMinimumGCAge")
	}
	return nil
}

// Excess is how many bytes must be freed of a disk: 0 if less than High is in use.
func (c Config) Excess(total, free int64) int64 {
	if c.Counted > 0 {
		total = min(total, c.Counted)
	}
	if total <= 0 || 100*(total-free)/total < int64(c.High) {
		return 0
	}
	return max(0, total/100*int64(100-c.Low)-free)
}

// Image is one that the runtime has.
type Image struct {
	ID    string
	Size  int64
	InUse bool // by a container, or pinned
}

type record struct{ found, used time.Time }

// Records are what is known of the images' past. The zero value knows nothing.
type Records struct {
	seen   map[string]*record
	looked bool
}

// Look takes in what there is now. Images of the first look may have been there for
// any time.
func (r *Records) Look(now time.Time, images []Image) {
	next := map[string]*record{}
	for _, i := range images {
		rec := r.seen[i.ID]
		if rec == nil {
			rec = &record{}
			if r.looked {
				rec.found = now
			}
		}
		if i.InUse {
			rec.used = now
		}
		next[i.ID] = rec
	}
	r.seen, r.looked = next, true
}

// Removable orders the images that may go, as of the last look, at now.
func (r *Records) Removable(c Config, now time.Time, images []Image) (out []Image) {
	for _, i := range images {
		if rec := r.seen[i.ID]; rec != nil && !i.InUse && now.Sub(rec.found) >= c.MinAge {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b Image) int {
		x, y := r.seen[a.ID], r.seen[b.ID]
		return cmp.Or(x.used.Compare(y.used), x.found.Compare(y.found), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// Stale are those of the removable images that have not been used for MaxAge. One that
// was not seen in use since the first look counts from then.
func (r *Records) Stale(c Config, now time.Time, images []Image) (out []Image) {
	if c.MaxAge == 0 {
		return nil
	}
	for _, i := range r.Removable(c, now, images) {
		rec := r.seen[i.ID]
		last := rec.used
		if last.Before(rec.found) {
			last = rec.found
		}
		if last.IsZero() {
			rec.used = now // unknown: its time begins
		} else if now.Sub(last) > c.MaxAge {
			out = append(out, i)
		}
	}
	return out
}
