package webhook_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/apiserver/webhook"
	"knarr.dev/knarr/kit/pki"
)

// serve runs a callback with a certificate for names and returns its address and
// authority.
func serve(t *testing.T, h http.HandlerFunc, names ...string) (addr string, ca []byte) {
	t.Helper()
	authority, err := pki.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Server("hook", nil, names, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS}, MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Cert.Raw})
}

// A Service is dialled where the resolver says, verified by its name in the
// cluster, and asked again over the same connection.
func TestPostToService(t *testing.T) {
	addr, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Host != "hook.ns.svc:443" || r.URL.Path != "/p" || r.URL.Query().Get("timeout") != "3s" || string(body) != "question" {
			t.Errorf("the callback was asked %s %s %q", r.Host, r.URL, body)
		}
		io.WriteString(w, "answer "+r.RemoteAddr)
	}, "hook.ns.svc")
	c := webhook.New(func(namespace, name string, port int32) (string, error) {
		if namespace != "ns" || name != "hook" || port != 443 {
			t.Errorf("resolved %s/%s:%d", namespace, name, port)
		}
		return addr, nil
	})
	target := webhook.Target{Service: &webhook.Service{Namespace: "ns", Name: "hook", Path: "/p"}, CABundle: ca}
	first, err := c.Post(t.Context(), target, 3*time.Second, []byte("question"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Post(t.Context(), target, 3*time.Second, []byte("question"))
	if err != nil {
		t.Fatal(err)
	}
	if string(first) != string(second) || !strings.HasPrefix(string(first), "answer ") {
		t.Errorf("answers %q, %q: want the same connection twice", first, second)
	}
}

func TestPostFails(t *testing.T) {
	hang := make(chan struct{})
	addr, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-hang
		case "/redirect":
			http.Redirect(w, r, "/", http.StatusFound)
		case "/long":
			w.Write(make([]byte, webhook.MaxAnswer+1))
		default:
			http.Error(w, "no such hook", http.StatusNotFound)
		}
	}, "hook.ns.svc")
	defer close(hang)
	refuse := func(string, string, int32) (string, error) {
		return "", errors.New(`service "hook" not found`)
	}
	for _, c := range []struct {
		name    string
		target  webhook.Target
		timeout time.Duration
		want    string
	}{
		{"status", webhook.Target{URL: "https://" + addr + "/x", CABundle: ca}, time.Second, "the server could not find the requested resource"},
		{"redirect", webhook.Target{URL: "https://" + addr + "/redirect", CABundle: ca}, time.Second, "302"},
		{"slow", webhook.Target{URL: "https://" + addr + "/slow", CABundle: ca}, 50 * time.Millisecond, "context deadline exceeded"},
		{"long", webhook.Target{URL: "https://" + addr + "/long", CABundle: ca}, 20 * time.Second, "is longer than"},
		{"trust", webhook.Target{URL: "https://" + addr + "/x"}, time.Second, "certificate signed by unknown authority"},
		{"bundle", webhook.Target{URL: "https://" + addr + "/x", CABundle: []byte("x")}, time.Second, "unable to load root certificates"},
		{"name", webhook.Target{Service: &webhook.Service{Namespace: "ns", Name: "other"}, CABundle: ca}, time.Second, `service "hook" not found`},
		{"none", webhook.Target{}, time.Second, "either service or URL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := webhook.New(refuse).Post(t.Context(), c.target, c.timeout, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that contains %q", err, c.want)
			}
			if c.name == "status" && !apierrors.IsNotFound(err) {
				t.Errorf("reason %s", apierrors.ReasonForError(err))
			}
			if c.name == "slow" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v is not a timeout", err)
			}
		})
	}
}
