package registry

import (
	"context"
	"fmt"

	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/store"
)

// Reseal seals anew what is stored in the clear or under a former key, and returns
// how many values that were. Afterwards nobody needs the former keys.
func (r *Registry) Reseal(ctx context.Context) (n int, err error) {
	if r.cfg.Sealer == nil {
		return 0, nil
	}
	for _, res := range r.Resources() {
		if !res.SecretAtRest || !res.Primary {
			continue
		}
		done, err := r.resealKind(ctx, watchcache.Key(res.Kind, ""))
		if n += done; err != nil {
			return n, fmt.Errorf("seal %s anew: %w", res.Kind.Resource, err)
		}
	}
	return n, nil
}

func (r *Registry) resealKind(ctx context.Context, prefix string) (n int, err error) {
	const page = 500
	opts := store.RangeOptions{Limit: page}
	for {
		got, err := r.cfg.Store.Range(ctx, prefix, opts)
		if err != nil {
			return n, err
		}
		for _, kv := range got.KVs {
			if !r.cfg.Sealer.Stale(kv.Key, kv.Value) {
				continue
			}
			plain, err := r.cfg.Sealer.Open(kv.Key, kv.Value)
			if err != nil {
				return n, err
			}
			sealed, err := r.cfg.Sealer.Seal(kv.Key, plain)
			if err != nil {
				return n, err
			}
			// Whoever was faster has sealed it with the present key.
			w, err := r.cfg.Store.Write(ctx, store.Write{Key: kv.Key, If: kv.Revision, Value: sealed})
			if err != nil {
				return n, err
			}
			if w.Done {
				n++
			}
		}
		if !got.More {
			return n, nil
		}
		opts.From, opts.Revision = got.KVs[len(got.KVs)-1].Key+"\x00", got.Revision
	}
}
