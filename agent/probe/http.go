package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// errElsewhere stops a redirect to another host: it is not followed, and the
// container that answered counts as alive.
var errElsewhere = errors.New("redirect to another host")

const maxRedirects = 10

// HTTP requests a URL of the target. 2xx and 3xx mean success. Certificates are
// not verified, and no connection is kept.
func HTTP(ctx context.Context, t Target, h *corev1.HTTPGetAction, timeout time.Duration, agent string) (Result, string) {
	req, err := request(ctx, t, h, agent)
	if err != nil {
		return Unknown, err.Error()
	}
	resp, err := caller(timeout).Do(req)
	if errors.Is(err, errElsewhere) {
		return Success, "Probe terminated redirects"
	}
	if err != nil {
		return Failure, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	if err != nil && len(body) == 0 {
		return Failure, err.Error()
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return Success, string(body)
	}
	return Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)
}

// Call requests a URL of the target, whatever it answers: so are containers told of
// their lives. Who is asked by https but speaks http is asked by that.
func Call(ctx context.Context, t Target, h *corev1.HTTPGetAction, timeout time.Duration, agent string) error {
	req, err := request(ctx, t, h, agent)
	if err != nil {
		return err
	}
	resp, err := caller(timeout).Do(req)
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		req.URL.Scheme = "http"
		resp, err = caller(timeout).Do(req)
	}
	if err != nil && !errors.Is(err, errElsewhere) {
		return err
	}
	if resp != nil {
		resp.Body.Close()
	}
	return nil
}

// request is what is asked of the target.
func request(ctx context.Context, t Target, h *corev1.HTTPGetAction, agent string) (*http.Request, error) {
	port, err := Port(h.Port, t.Container)
	if err != nil {
		return nil, err
	}
	scheme := strings.ToLower(string(h.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(hostOr(h.Host, t.IP), strconv.Itoa(port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", agent)
	req.Header.Set("Accept", "*/*")
	seen := map[string]bool{}
	for _, hd := range h.HTTPHeaders {
		name := http.CanonicalHeaderKey(hd.Name)
		switch {
		case name == "Host":
			req.Host = hd.Value
		case seen[name]:
			req.Header.Add(name, hd.Value)
		default:
			req.Header.Set(name, hd.Value)
		}
		seen[name] = true
		if (name == "Accept" || name == "User-Agent") && hd.Value == "" {
			req.Header.Del(name)
		}
	}
	return req, nil
}

func caller(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DisableKeepAlives: true, DisableCompression: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // as Kubernetes defines: a probe asks for life, not identity
			DialContext:     (&net.Dialer{Timeout: timeout}).DialContext,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Hostname() != via[0].URL.Hostname() {
				return errElsewhere
			}
			if len(via) >= maxRedirects {
				return fmt.Errorf("stopped after %d redirects", maxRedirects)
			}
			return nil
		},
	}
}
