package local

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/apiserver/aggregate"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/remote"
)

// Extensions reaches what extension servers serve, by the API server's own door:
// there is no other way to their objects than requests and watches.
type Extensions struct {
	aggregate *aggregate.Aggregator
	admin     *rest.Config
	ctx       context.Context // of the clients' caches
	log       *slog.Logger

	mu      sync.Mutex
	clients map[string]*remote.Client // by user
}

// NewExtensions returns the way to what a reaches. admin must be allowed to act as
// everybody; ctx ends the caches.
func NewExtensions(ctx context.Context, a *aggregate.Aggregator, admin *rest.Config, log *slog.Logger) *Extensions {
	return &Extensions{aggregate: a, admin: admin, ctx: ctx, log: log, clients: map[string]*remote.Client{}}
}

// Close waits for the caches, whose context has ended.
func (e *Extensions) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.clients {
		c.Close()
	}
}

// as returns a user's client.
func (e *Extensions) as(u *authenticationv1.UserInfo) (*remote.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.clients[u.Username]; c != nil {
		return c, nil
	}
	cfg := rest.CopyConfig(e.admin)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: u.Username, UID: u.UID, Groups: u.Groups}
	c, err := remote.New(e.ctx, cfg, e.log)
	if err != nil {
		return nil, err
	}
	e.clients[u.Username] = c
	return c, nil
}

// serves tells whether an extension server is to serve gv.
func (e *Extensions) serves(gv schema.GroupVersion) bool {
	return slices.ContainsFunc(e.aggregate.Remotes(), func(r aggregate.Remote) bool { return r.GroupVersion == gv })
}

// resources lists what extension servers serve, of each group the version of the
// highest priority. The error, if any, is a discovery.ErrGroupDiscoveryFailed.
func (e *Extensions) resources() ([]client.ResourceInfo, error) {
	remotes := e.aggregate.Remotes()
	slices.SortFunc(remotes, func(a, b aggregate.Remote) int { return int(b.VersionPriority - a.VersionPriority) })
	var out []client.ResourceInfo
	seen := map[schema.GroupResource]bool{}
	silent := map[schema.GroupVersion]error{}
	for _, r := range remotes {
		if !r.Current || r.Resources == nil {
			silent[r.GroupVersion] = errors.New("the server is currently unable to handle the request")
			continue
		}
		for _, res := range r.Resources.APIResources {
			gvr := r.GroupVersion.WithResource(res.Name)
			if strings.Contains(res.Name, "/") || seen[gvr.GroupResource()] {
				continue
			}
			seen[gvr.GroupResource()] = true
			out = append(out, client.ResourceInfo{Resource: gvr, Kind: res.Kind, Namespaced: res.Namespaced, Verbs: res.Verbs, Extension: true})
		}
	}
	if len(silent) > 0 {
		return out, &discovery.ErrGroupDiscoveryFailed{Groups: silent}
	}
	return out, nil
}

// far returns the client of a resource that an extension server serves, or nil.
func (c *Client) far(r client.Resource) client.Interface {
	e := c.s.Extensions
	if e == nil || c.s.Registry.Resource(r) != nil || !e.serves(r.GroupVersion()) {
		return nil
	}
	f, err := e.as(c.user)
	if err != nil {
		e.log.Error("extension servers cannot be reached", "user", c.user.Username, "error", err)
		return nil
	}
	return f
}
