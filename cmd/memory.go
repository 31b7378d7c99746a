package cmd

import (
	"context"
	"log/slog"
	"time"

	"knarr.dev/knarr/kit/lean"
)

// restAfter is how long after it is ready a process has done all that only a start
// does.
const restAfter = 5 * time.Second

// restLater gives back what only the start needed, unless ctx ends before.
func restLater(ctx context.Context, log *slog.Logger) {
	select {
	case <-ctx.Done():
	case <-time.After(restAfter):
		if err := lean.Rest(); err != nil {
			log.Warn("memory that only the start needed could not be given back", "error", err)
		}
	}
}
