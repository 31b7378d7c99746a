package store

import (
	"context"
	"log/slog"
	"time"
)

// CompactEvery forgets, at each interval, the history that is older than one
// interval, until ctx ends. It is for an etcd that runs elsewhere; the embedded one
// compacts by itself.
func CompactEvery(ctx context.Context, s Store, interval time.Duration, log *slog.Logger) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	var before int64 // the revision one interval ago
	for {
		now, err := s.Revision(ctx)
		if err == nil && before > 0 {
			err = s.Compact(ctx, before)
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("history of the store not compacted; trying again", "error", err)
		}
		before = now
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
