// Package webhook posts JSON documents to the HTTPS callbacks that users
// configure: admission and conversion webhooks. It knows where a callback is,
// whom to trust there and how long to wait; what is said is its callers'.
//
// See https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// MaxAnswer is the size in bytes of the longest answer that is read.
const MaxAnswer = 16 << 20

// Resolver returns the address, as "host:port", at which a Service's port is
// reached from this machine. Its error says why there is none.
type Resolver func(namespace, name string, port int32) (hostport string, err error)

// Target is where a callback is: at URL, or at Service if that is set.
type Target struct {
	// URL is https://host[:port]/path, without user, fragment or query.
	URL     string
	Service *Service
	// CABundle are PEM certificates that the callback's own is verified with;
	// empty: the system's authorities.
	CABundle []byte
}

// Service names a port of a Service in the cluster. Its certificate must be
// valid for NAME.NAMESPACE.svc.
type Service struct {
	Namespace, Name string
	Path            string // of the URL; empty: /
	Port            int32  // 0: 443
}

const defaultPort = 443

// FromConfig is the target of an admission webhook's client configuration.
func FromConfig(c *admissionregistrationv1.WebhookClientConfig) Target {
	t := Target{CABundle: c.CABundle}
	if c.URL != nil {
		t.URL = *c.URL
	}
	if s := c.Service; s != nil {
		t.Service = &Service{Namespace: s.Namespace, Name: s.Name}
		if s.Path != nil {
			t.Service.Path = *s.Path
		}
		if s.Port != nil {
			t.Service.Port = *s.Port
		}
	}
	return t
}

// Caller calls webhooks, keeping connections open between calls. It is safe for
// concurrent use.
type Caller struct {
	resolve    Resolver
	transports transports
}

// New returns a caller that finds Services by resolve.
func New(resolve Resolver) *Caller { return &Caller{resolve: resolve} }

// Post sends a JSON document and returns the body of the answer. timeout bounds
// the call and is told to the callback as the query parameter "timeout"; zero
// means no bound but ctx's. An answer other than 2xx is a StatusError with the
// answer's code; other errors say what prevented the call.
func (c *Caller) Post(ctx context.Context, t Target, timeout time.Duration, body []byte) ([]byte, error) {
	u, err := t.url()
	if err != nil {
		return nil, err
	}
	if timeout > 0 {
		u.RawQuery = url.Values{"timeout": {timeout.String()}}.Encode()
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	transport, err := c.transports.of(t, c.resolve)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", u, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, */*")
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err // a url.Error, which names method and URL
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer of webhook %s: %w", u, err)
	case len(answer) > MaxAnswer:
		return nil, fmt.Errorf("the answer of webhook %s is longer than %d bytes", u, MaxAnswer)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		retry, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // 0 where it is absent or a date
		return nil, apierrors.NewGenericServerResponse(resp.StatusCode, http.MethodPost, schema.GroupResource{}, "", strings.TrimSpace(string(answer)), retry, true)
	}
	return answer, nil
}

var errNoTarget = errors.New("webhook configuration must have either service or URL")

// url is what is asked for; for a Service the host is its name in certificates.
func (t *Target) url() (*url.URL, error) {
	if s := t.Service; s != nil {
		path := s.Path
		if path == "" {
			path = "/"
		}
		return &url.URL{Scheme: "https", Host: net.JoinHostPort(s.host(), strconv.Itoa(int(s.port()))), Path: path}, nil
	}
	if t.URL == "" {
		return nil, errNoTarget
	}
	u, err := url.Parse(t.URL)
	if err != nil {
		return nil, fmt.Errorf("Unparsable webhook URL: %w", err) //nolint:staticcheck // Kubernetes' words
	}
	return u, nil
}

func (s *Service) host() string { return s.Name + "." + s.Namespace + ".svc" }

func (s *Service) port() int32 {
	if s.Port == 0 {
		return defaultPort
	}
	return s.Port
}
