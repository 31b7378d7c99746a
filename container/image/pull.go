package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"knarr.dev/knarr/container/snapshot"
)

// Registries configures hosts by name (with port, if not the default).
// "docker.io" is Docker Hub; "*" is for hosts that have no entry.
type Registries map[string]Registry

// Registry is how to reach one host.
type Registry struct {
	// Mirrors are tried first, in order: host[:port] or a URL of such.
	Mirrors    []string
	PlainHTTP  bool
	SkipVerify bool // do not check the TLS certificate
	Auth       authn.AuthConfig
}

// maxLayers bounds the layers of one image that are fetched at once.
const maxLayers = 4

// pull is one download that several callers may wait for.
type pull struct {
	done  chan struct{}
	image *Image
	err   error
}

// Pull fetches ref unless its layers are here already, and returns the image.
// Concurrent pulls of one reference with the same credentials are joined: the
// first caller's context governs; when it is cancelled another takes over.
func (s *Store) Pull(ctx context.Context, ref string, auth authn.AuthConfig) (*Image, error) {
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	key := r.Name() + "\x00" + auth.Username + "\x00" + auth.Password + "\x00" + auth.IdentityToken + "\x00" + auth.RegistryToken + "\x00" + auth.Auth
	for {
		s.mu.Lock()
		p := s.pulls[key]
		if p == nil {
			p = &pull{done: make(chan struct{})}
			s.pulls[key] = p
			s.mu.Unlock()
			p.image, p.err = s.pull(ctx, r, auth)
			s.mu.Lock()
			delete(s.pulls, key)
			s.mu.Unlock()
			close(p.done)
			return p.image, p.err
		}
		s.mu.Unlock()
		select {
		case <-p.done:
			if errors.Is(p.err, context.Canceled) || errors.Is(p.err, context.DeadlineExceeded) {
				continue
			}
			return p.image, p.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Store) pull(ctx context.Context, r name.Reference, auth authn.AuthConfig) (*Image, error) {
	var errs []error
	list, err := s.endpoints(r, auth)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		i, err := s.pullFrom(ctx, r, e)
		if err == nil {
			return i, nil
		}
		errs = append(errs, fmt.Errorf("pulling %s: %w", e.ref, classify(err)))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errs[len(errs)-1] // the origin's answer; mirrors may lack anything
}

// endpoint is one place to pull a reference from.
type endpoint struct {
	ref       name.Reference
	auth      authn.AuthConfig
	transport http.RoundTripper
}

// endpoints lists where to try, the origin last: as configured here, else as
// hosts files say.
func (s *Store) endpoints(r name.Reference, auth authn.AuthConfig) ([]endpoint, error) {
	host := r.Context().RegistryStr()
	if host == name.DefaultRegistry {
		host = "docker.io"
	}
	conf, ok := s.registries[host]
	if !ok {
		hosts, err := hostsFor(s.HostsDirs, host)
		if err != nil {
			return nil, err
		}
		if hosts != nil {
			return s.hostEndpoints(r, hosts, auth)
		}
		conf = s.registries["*"]
	}
	if auth == (authn.AuthConfig{}) {
		auth = conf.Auth
	}
	var list []endpoint
	for _, m := range conf.Mirrors {
		plain := conf.PlainHTTP
		if u, err := url.Parse(m); err == nil && u.Host != "" {
			m, plain = u.Host, u.Scheme == "http"
		}
		list = append(list, s.endpoint(r, m, auth, plain, conf.SkipVerify))
	}
	return append(list, s.endpoint(r, r.Context().RegistryStr(), auth, conf.PlainHTTP, conf.SkipVerify)), nil
}

func (s *Store) hostEndpoints(r name.Reference, hosts []host, auth authn.AuthConfig) ([]endpoint, error) {
	_, byDigest := r.(name.Digest)
	var list []endpoint
	for i := range hosts {
		h := &hosts[i]
		if !h.resolve && !byDigest {
			continue
		}
		t, err := h.transport(s.transport)
		if err != nil {
			return nil, err
		}
		e := s.endpoint(r, h.url.Host, auth, h.url.Scheme == "http", false)
		e.transport = t
		if i < len(hosts)-1 {
			e.auth = authn.AuthConfig{} // the origin's credentials are nobody else's
		}
		list = append(list, e)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no host of %s may resolve tags", r.Context().RegistryStr())
	}
	return list, nil
}

func (s *Store) endpoint(r name.Reference, host string, auth authn.AuthConfig, plain, skipVerify bool) endpoint {
	opts := []name.Option{name.WeakValidation}
	if plain || isLoopback(host) {
		opts = append(opts, name.Insecure) // https first, then http
	}
	e := endpoint{ref: r, auth: auth, transport: s.transport}
	if registry, err := name.NewRegistry(host, opts...); err == nil {
		repo := registry.Repo(r.Context().RepositoryStr())
		if d, ok := r.(name.Digest); ok {
			e.ref = repo.Digest(d.DigestStr())
		} else {
			e.ref = repo.Tag(r.Identifier())
		}
	}
	if skipVerify {
		t := s.transport.Clone()
		t.TLSClientConfig = insecureTLS()
		e.transport = t
	}
	return e
}

// transportBy is the library's, by way of dial.
func transportBy(dial Dial) *http.Transport {
	t, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		t = &http.Transport{Proxy: http.ProxyFromEnvironment}
	}
	if dial == nil {
		return t
	}
	t = t.Clone()
	t.DialContext = dial
	return t
}

// isLoopback tells hosts that are this machine, for which plain HTTP is fine.
func isLoopback(host string) bool {
	h := host
	if n, _, err := net.SplitHostPort(host); err == nil {
		h = n
	}
	h = strings.Trim(h, "[]")
	ip := net.ParseIP(h)
	return h == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *Store) pullFrom(ctx context.Context, r name.Reference, e endpoint) (*Image, error) {
	opts := []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(limiter{resumer{e.transport, s.partials}}), remote.WithUserAgent("knarr"),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
	}
	if e.auth != (authn.AuthConfig{}) {
		opts = append(opts, remote.WithAuth(authn.FromConfig(e.auth)))
	}
	start := s.now()
	desc, err := remote.Get(e.ref, opts...)
	if err != nil {
		return nil, err
	}
	img, err := desc.Image()
	if err != nil {
		return nil, err
	}
	tag := ""
	if t, ok := r.(name.Tag); ok {
		tag = repository(r.Context()) + ":" + t.TagStr()
	}
	i, err := s.unpack(ctx, img, tag, repository(r.Context())+"@"+desc.Digest.String())
	if err == nil {
		s.log.Debug("pulled image", "image", r.Name(), "id", i.ID, "bytes", i.Size, "took", s.now().Sub(start))
	}
	return i, err
}

// unpack makes sure that all layers of img are in the store and records it.
func (s *Store) unpack(ctx context.Context, img v1.Image, tag, digest string) (*Image, error) {
	id, err := img.ConfigName()
	if err != nil {
		return nil, err
	}
	if err := checkConfig(img); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("reading the image's layers: %w", err)
	}
	if len(layers) != len(config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("the image's manifest has %d layers and its configuration %d", len(layers), len(config.RootFS.DiffIDs))
	}
	if os := config.OS; os != "" && os != "linux" {
		return nil, fmt.Errorf("the image is for %s, this machine runs linux", os)
	}
	diffIDs := make([]string, len(layers))
	for n := range layers {
		diffIDs[n] = config.RootFS.DiffIDs[n].String()
	}
	s.lease(diffIDs, 1)
	defer s.lease(diffIDs, -1)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLayers)
	for n, layer := range layers {
		group.Go(func() error {
			return s.fetch(gctx, layer, diffIDs[n])
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := s.layers.Inherit(diffIDs); err != nil {
		return nil, err
	}
	return s.add(id.String(), config, diffIDs, tag, digest)
}

// fetch gets one layer, again when it arrives broken. Layers that are here
// already, from before a crash too, are not fetched.
func (s *Store) fetch(ctx context.Context, layer v1.Layer, diffID string) error {
	for try := 1; ; try++ {
		err := s.layers.Add(ctx, diffID, func() (io.ReadCloser, error) {
			body, err := layer.Compressed()
			if err != nil {
				return nil, err
			}
			return watch(body, s.stall), nil
		})
		var refused *transport.Error
		if err == nil || ctx.Err() != nil || try == attempts || errors.As(err, &refused) || errors.Is(err, snapshot.ErrEscape) || errors.Is(err, snapshot.ErrFull) {
			return err
		}
		s.log.Info("fetching a layer again", "layer", diffID, "reason", err)
	}
}

// classify puts a registry's answer into one of the package's error classes.
func classify(err error) error {
	var t *transport.Error
	if !errors.As(err, &t) {
		return err
	}
	switch {
	case t.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case t.StatusCode == http.StatusUnauthorized || t.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: %w: check the pull secret", ErrUnauthorized, err)
	}
	return err
}
