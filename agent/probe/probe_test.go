package probe

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/agent/critest"
)

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "named" || r.Header.Get("X-A") != "1" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		// No answer, not even a late one: closing TLS is a conversation, in which
		// the client could still hear it.
		panic(http.ErrAbortHandler)
	})
	for _, scheme := range []string{"http", "https"} {
		s := httptest.NewUnstartedServer(mux)
		if scheme == "https" {
			s.StartTLS()
		} else {
			s.Start()
		}
		defer s.Close()
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.Atoi(u.Port())
		if err != nil {
			t.Fatal(err)
		}
		target := Target{IP: "127.0.0.1", Container: &corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}}
		for path, want := range map[string]struct {
			r   Result
			out string
		}{
			"/ok": {Success, ""}, "/bad": {Failure, "HTTP probe failed with statuscode: 500"}, "/away": {Success, "Probe terminated redirects"},
			"/here": {Failure, "HTTP probe failed with statuscode: 500"},
		} {
			h := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("web"), Scheme: corev1.URIScheme(strings.ToUpper(scheme)),
				HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "named"}, {Name: "X-A", Value: "1"}}}}
			if r, out := Run(t.Context(), nil, target, h, 5*time.Second); r != want.r || out != want.out {
				t.Errorf("%s %s: %v %q", scheme, path, r, out)
			}
		}
		// A hook is told, whatever it answers and however it is spoken to.
		for path, want := range map[string]string{"/bad": "", "/away": "", "/here": "", "/slow": "Client.Timeout"} {
			err := Call(t.Context(), target, &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("web"), Scheme: corev1.URISchemeHTTPS}, 50*time.Millisecond, "kube-lifecycle/1.36")
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s, a hook of %s: %v", scheme, path, err)
			}
		}
		if err := Call(t.Context(), target, &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(1)}, 5*time.Second, "x"); err == nil {
			t.Error("nobody was there, and the hook was told")
		}
		h := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/slow", Port: intstr.FromInt32(int32(port)), Scheme: corev1.URIScheme(strings.ToUpper(scheme))}}
		if r, out := Run(t.Context(), nil, target, h, 50*time.Millisecond); r != Failure || !strings.Contains(out, "Client.Timeout") {
			t.Errorf("slow: %v %q", r, out)
		}
	}
}

func TestTCPAndExec(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	target := Target{IP: "127.0.0.1", Container: &corev1.Container{Name: "c"}}
	h := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(port))}}
	if r, out := Run(t.Context(), nil, target, h, time.Second); r != Success {
		t.Errorf("open port: %v %s", r, out)
	}
	l.Close()
	if r, out := Run(t.Context(), nil, target, h, time.Second); r != Failure || !strings.Contains(out, "connection refused") {
		t.Errorf("closed port: %v %s", r, out)
	}
	rt := critest.New()
	e := corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}
	if r, _ := Run(t.Context(), rt.Client(t), target, e, time.Second); r != Unknown {
		t.Errorf("a missing container: %v, want unknown", r)
	}
}
