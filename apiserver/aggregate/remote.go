package aggregate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"knarr.dev/knarr/apiserver/watchcache"
)

// Of the discovery check: how long it may take, and after which time a failed one
// is tried again, at first and at most.
const (
	checkTimeout = 6 * time.Second
	firstRetry   = 250 * time.Millisecond
	lastRetry    = 30 * time.Second
	maxDiscovery = 8 << 20 // bytes
)

// remote is an APIService that an extension server serves.
type remote struct {
	service   *apiregv1.APIService // its name and spec count, which stay: another spec makes another remote
	transport *http.Transport
	available bool
	resources *metav1.APIResourceList

	fresh    bool      // not published yet
	checked  string    // the endpoints that were checked last
	checking bool      // a check is under way
	failure  error     // of the last check
	retryAt  time.Time // of a failed check
	retry    time.Duration
}

func newRemote(a *Aggregator, s *apiregv1.APIService) *remote {
	return &remote{service: s, transport: newTransport(a, s), fresh: true, retry: firstRetry}
}

func (r *remote) gv() schema.GroupVersion { return groupVersion(r.service) }

func (r *remote) port() int32 {
	if p := r.service.Spec.Service.Port; p != nil {
		return *p
	}
	return 443
}

// base is the URL of the extension server; its host is the Service's name in
// certificates.
func (r *remote) base() *url.URL {
	s := r.service.Spec.Service
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(s.Name+"."+s.Namespace+".svc", strconv.Itoa(int(r.port())))}
}

func newTransport(a *Aggregator, s *apiregv1.APIService) *http.Transport {
	svc := *s.Spec.Service
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: svc.Name + "." + svc.Namespace + ".svc",
		Certificates:       []tls.Certificate{a.FrontProxy},
		InsecureSkipVerify: s.Spec.InsecureSkipTLSVerify, //nolint:gosec // who registers the server asks for it
	}
	if len(s.Spec.CABundle) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM(s.Spec.CABundle) // none: no certificate is accepted
	}
	port := int32(443)
	if svc.Port != nil {
		port = *svc.Port
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	return &http.Transport{
		TLSClientConfig: cfg, TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 25, IdleConnTimeout: 90 * time.Second,
		DisableCompression: true, // the client's own Accept-Encoding goes through
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			addr, err := a.Resolve(svc.Namespace, svc.Name, port)
			if err != nil {
				return nil, err
			}
			return dialer.DialContext(ctx, network, addr)
		},
	}
}

// judge tells whether an extension server is available; nil: a check that tells it
// is under way. again is when to ask once more. a.mu is held.
func (a *Aggregator) judge(ctx context.Context, r *remote) (c *condition, again time.Duration) {
	endpoints, c := a.reachable(r)
	if c != nil {
		r.checked, r.retry = "", firstRetry
		return c, 0
	}
	now := a.Now()
	switch {
	case r.checking:
		return nil, 0
	case r.checked == endpoints && r.failure == nil:
		return &condition{apiregv1.ConditionTrue, "Passed", "all checks passed"}, 0
	case r.checked == endpoints && now.Before(r.retryAt):
		return &condition{apiregv1.ConditionFalse, "FailedDiscoveryCheck", r.failure.Error()}, r.retryAt.Sub(now)
	}
	r.checking = true
	a.checks.Go(func() { a.check(ctx, r, endpoints) })
	return nil, 0
}

// reachable returns the endpoints of an extension server, or why there are none.
func (a *Aggregator) reachable(r *remote) (string, *condition) {
	ref := r.service.Spec.Service
	no := func(reason, format string, args ...any) (string, *condition) {
		return "", &condition{apiregv1.ConditionFalse, reason, fmt.Sprintf(format, args...)}
	}
	it := a.core.Cache.Get(ref.Namespace + "/" + ref.Name)
	if it == nil {
		return no("ServiceNotFound", "service/%s in %q is not present", ref.Name, ref.Namespace)
	}
	svc := it.Object.(*corev1.Service)
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return svc.Spec.ExternalName, nil
	}
	name, ok := "", false
	for _, p := range svc.Spec.Ports {
		if p.Port == r.port() {
			name, ok = p.Name, true
		}
	}
	if !ok {
		return no("ServiceAccessError", "service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, r.port())
	}
	found, ready := false, string(svc.UID)
	a.slices.Cache.Snapshot().Ascend(ref.Namespace+"/", "", func(i *watchcache.Item) bool {
		s := i.Object.(*discoveryv1.EndpointSlice)
		if s.Labels[discoveryv1.LabelServiceName] == ref.Name {
			found = true
			ready += addresses(s, name)
		}
		return true
	})
	switch {
	case !found:
		return no("EndpointsNotFound", "cannot find endpointslices for service/%s in %q", ref.Name, ref.Namespace)
	case ready == string(svc.UID):
		return no("MissingEndpoints", "endpointslices for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, name)
	}
	return ready, nil
}

func addresses(s *discoveryv1.EndpointSlice, port string) (out string) {
	for _, p := range s.Ports {
		if p.Port == nil || p.Name == nil && port != "" || p.Name != nil && *p.Name != port {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				out += fmt.Sprintf(" %v:%d", e.Addresses, *p.Port)
			}
		}
	}
	return out
}

// check asks an extension server for its discovery document and notes the outcome.
func (a *Aggregator) check(ctx context.Context, r *remote, endpoints string) {
	list, err := a.discover(ctx, r)
	a.mu.Lock()
	r.checking, r.checked, r.failure = false, endpoints, err
	if err != nil {
		r.retryAt = a.Now().Add(r.retry)
		r.retry = min(2*r.retry, lastRetry)
	} else {
		r.resources, r.retry, r.fresh = list, firstRetry, true
	}
	a.mu.Unlock()
	a.nudge()
}

// nudge has the loop look at everything again.
func (a *Aggregator) nudge() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *Aggregator) discover(ctx context.Context, r *remote) (*metav1.APIResourceList, error) {
	u := r.base()
	u.Path = "/apis/" + r.gv().String()
	list := &metav1.APIResourceList{}
	if err := r.get(ctx, u.Path, maxDiscovery, list); err != nil {
		return nil, fmt.Errorf("failing or missing response from %s: %w", u, err)
	}
	return list, nil
}

// get reads a JSON document of at most so many bytes from an extension server, as the
// aggregator itself.
func (r *remote) get(ctx context.Context, path string, most int64, into any) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	u := r.base()
	u.Path = path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set(userHeader, "system:kube-aggregator")
	req.Header.Set(groupHeader, "system:masters")
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("bad status from %s: %d", u, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(into); err != nil {
		return fmt.Errorf("decode %s: %w", u, err)
	}
	return nil
}
