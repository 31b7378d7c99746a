package aggregate_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	apiregv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/kit/pki"
)

var apiServices = apiregv1.SchemeGroupVersion.WithResource("apiservices")

// extension is a server of the group wardle.example.com.
type extension struct {
	addr   string
	ca     []byte
	broken atomic.Bool
	asked  atomic.Pointer[http.Request]
}

func extend(t *testing.T, frontProxy func() *x509.CertPool) *extension {
	t.Helper()
	e := &extension{}
	authority, err := pki.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Server("wardle", nil, []string{"wardle.ns.svc"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].Subject.CommonName != auth.FrontProxyName {
			t.Errorf("%s came without the front proxy's certificate", r.URL)
		}
		if _, err := r.TLS.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: frontProxy(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("front proxy's certificate: %v", err)
		}
		switch {
		case e.broken.Load():
			http.Error(w, "broken", http.StatusInternalServerError)
		case r.URL.Path == "/apis/wardle.example.com/v1":
			_ = json.NewEncoder(w).Encode(metav1.APIResourceList{GroupVersion: "wardle.example.com/v1", APIResources: []metav1.APIResource{
				{Name: "flunders", SingularName: "flunder", Namespaced: true, Kind: "Flunder", Verbs: metav1.Verbs{"get", "list"}}}})
		case r.URL.Path == "/openapi/v3/apis/wardle.example.com/v1":
			_, _ = io.WriteString(w, `{"openapi":"3.0.0","info":{"title":"wardle"},"paths":{"/apis/wardle.example.com/v1/flunders":{}},"components":{"schemas":{"wardle.Flunder":{"type":"object","description":"third"}}}}`)
		case r.URL.Path == "/openapi/v2":
			_, _ = io.WriteString(w, `{"swagger":"2.0","info":{"title":"wardle"},"paths":{"/apis/wardle.example.com/v1/flunders":{"get":{"responses":{"200":{"description":"OK","schema":{"$ref":"#/definitions/wardle.Flunder"}}}}}},"definitions":{"wardle.Flunder":{"type":"object","description":"second"}}}`)
		case r.URL.Path == "/apis/wardle.example.com/v1/upgrade":
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			_ = rw.Flush()
			_, _ = io.Copy(conn, rw)
		default:
			e.asked.Store(r.Clone(context.WithoutCancel(r.Context())))
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"apiVersion":"wardle.example.com/v1","kind":"Flunder","metadata":{"name":"f","namespace":"ns"}}`)
		}
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS}, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	e.addr, e.ca = srv.Listener.Addr().String(), authority.PEM
	return e
}

type cluster struct {
	*apitest.Server
	ext     *extension
	client  *kubernetes.Clientset
	dynamic dynamic.Interface
}

func start(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{}
	c.ext = extend(t, func() *x509.CertPool { return c.FrontProxy.Pool() })
	c.Server = apitest.Start(t, apitest.Options{Extensions: true, Resolve: func(namespace, name string, port int32) (string, error) {
		if namespace != "ns" || name != "wardle" || port != 443 {
			return "", errors.New("no such service")
		}
		return c.ext.addr, nil
	}})
	c.Namespace(t, "ns")
	c.client = c.Client(t)
	d, err := dynamic.NewForConfig(c.Admin(t))
	if err != nil {
		t.Fatal(err)
	}
	c.dynamic = d
	return c
}

func (c *cluster) register(t *testing.T) {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": "v1.wardle.example.com"},
		"spec": map[string]any{"group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": int64(2000), "versionPriority": int64(200),
			"caBundle": []byte(nil), "service": map[string]any{"namespace": "ns", "name": "wardle"}},
	}}
	b, err := json.Marshal(c.ext.ca)
	if err != nil {
		t.Fatal(err)
	}
	_ = unstructured.SetNestedField(u.Object, strings.Trim(string(b), `"`), "spec", "caBundle")
	if _, err := c.dynamic.Resource(apiServices).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// await waits until the APIService's condition has a reason.
func (c *cluster) await(t *testing.T, name, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w, err := c.dynamic.Resource(apiServices).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	last := ""
	for e := range w.ResultChan() {
		u, ok := e.Object.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, v := range conditions {
			cond := v.(map[string]any)
			last = cond["reason"].(string) + ": " + cond["message"].(string)
			if cond["reason"] == reason {
				return
			}
		}
	}
	t.Fatalf("APIService %s: %q, want %s", name, last, reason)
}

func (c *cluster) service(t *testing.T) {
	t.Helper()
	_, err := c.client.CoreV1().Services("ns").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "wardle"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) endpoints(t *testing.T, ready bool) {
	t.Helper()
	port := int32(443)
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "wardle", Labels: map[string]string{discoveryv1.LabelServiceName: "wardle"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}}
	slices := c.client.DiscoveryV1().EndpointSlices("ns")
	_, err := slices.Create(t.Context(), s, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = slices.Update(t.Context(), s, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The condition follows the Service, its endpoints and the server's answers.
func TestAvailability(t *testing.T) {
	c := start(t)
	const name = "v1.wardle.example.com"
	c.register(t)
	c.await(t, name, "ServiceNotFound")
	c.service(t)
	c.await(t, name, "EndpointsNotFound")
	c.endpoints(t, false)
	c.await(t, name, "MissingEndpoints")
	c.ext.broken.Store(true)
	c.endpoints(t, true)
	c.await(t, name, "FailedDiscoveryCheck")
	c.ext.broken.Store(false)
	c.await(t, name, "Passed")
	c.await(t, "v1.apps", "Local")
	c.endpoints(t, false)
	c.await(t, name, "MissingEndpoints")
	flunders := schema.GroupVersionResource{Group: "wardle.example.com", Version: "v1", Resource: "flunders"}
	if _, err := c.dynamic.Resource(flunders).Namespace("ns").Get(t.Context(), "f", metav1.GetOptions{}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("request to an unavailable server: %v", err)
	}
}

// Requests reach the extension server in the user's name, and discovery shows it.
func TestProxy(t *testing.T) {
	c := start(t)
	c.service(t)
	c.endpoints(t, true)
	c.register(t)
	c.await(t, "v1.wardle.example.com", "Passed")
	ctx := t.Context()
	cfg := c.As(t, "alice", "wizards", auth.GroupMasters)
	d, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	flunders := schema.GroupVersionResource{Group: "wardle.example.com", Version: "v1", Resource: "flunders"}
	o, err := d.Resource(flunders).Namespace("ns").Get(ctx, "f", metav1.GetOptions{})
	if err != nil || o.GetName() != "f" {
		t.Fatalf("%v, %v", o, err)
	}
	h := c.ext.asked.Load().Header
	if h.Get("X-Remote-User") != "alice" || strings.Join(h.Values("X-Remote-Group"), ",") != "wizards,system:masters,system:authenticated" {
		t.Errorf("the extension server was told %v", h)
	}
	if _, err := dynamicOf(t, c.As(t, "bob")).Resource(flunders).Namespace("ns").Get(ctx, "f", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a user without rights: %v", err)
	}
	groups, resources, err := c.client.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, g := range groups {
		order = append(order, g.Name)
	}
	if text := strings.Join(order, " "); !strings.HasPrefix(text, " apiregistration.k8s.io apps events.k8s.io ") || !strings.HasSuffix(text, " wardle.example.com") {
		t.Errorf("groups in the order %q", text)
	}
	found := false
	for _, l := range resources {
		found = found || l.GroupVersion == "wardle.example.com/v1" && len(l.APIResources) == 1 && l.APIResources[0].Kind == "Flunder"
	}
	if !found {
		t.Error("discovery does not show the extension server's resources")
	}
	for path, want := range map[string]string{
		"/openapi/v3":                            "apis/wardle.example.com/v1",
		"/openapi/v3/apis/wardle.example.com/v1": "third",
		"/openapi/v3/apis/apps/v1":               "io.k8s.api.apps.v1.Deployment",
		"/openapi/v2":                            `"second"`,
	} {
		b, err := c.client.RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").Do(ctx).Raw()
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s does not contain %q: %v", path, want, err)
		}
	}
	c.upgrade(t)
}

func dynamicOf(t *testing.T, cfg *rest.Config) dynamic.Interface {
	t.Helper()
	d, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// upgrade speaks through an upgraded connection.
func (c *cluster) upgrade(t *testing.T) {
	t.Helper()
	pair, err := c.CA.Client("admin", auth.GroupMasters)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(c.URL, "https://"), &tls.Config{RootCAs: c.CA.Pool(), Certificates: []tls.Certificate{pair.TLS}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /apis/wardle.example.com/v1/upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	buf := make([]byte, 4096)
	for !strings.HasSuffix(got.String(), "\r\n\r\n") {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, got.String())
		}
		got.Write(buf[:n])
	}
	if !strings.HasPrefix(got.String(), "HTTP/1.1 101 ") {
		t.Fatalf("answer %q", got.String())
	}
	if _, err := io.WriteString(conn, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, buf[:4]); err != nil || string(buf[:4]) != "ping" {
		t.Errorf("echo %q, %v", buf[:4], err)
	}
}

// A front proxy names the user; another certificate of its authority names nobody.
func TestFrontProxyIsBelieved(t *testing.T) {
	c := start(t)
	who := func(name string) (string, error) {
		pair, err := c.FrontProxy.Client(name, auth.GroupMasters)
		if err != nil {
			t.Fatal(err)
		}
		cfg := &rest.Config{Host: c.URL, TLSClientConfig: rest.TLSClientConfig{CAData: c.CA.PEM, CertData: pair.CertPEM, KeyData: pair.KeyPEM}}
		cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.Header.Set("X-Remote-User", "carol")
				r.Header.Add("X-Remote-Group", auth.GroupMasters)
				r.Header.Set("X-Remote-Extra-Scopes", "all")
				return rt.RoundTrip(r)
			})
		})
		var out unstructured.Unstructured
		b, err := apitest.ClientOf(t, cfg).AuthenticationV1().RESTClient().Post().Resource("selfsubjectreviews").
			Body([]byte(`{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`)).Do(t.Context()).Raw()
		if err != nil {
			return "", err
		}
		return string(b), json.Unmarshal(b, &out.Object)
	}
	if text, err := who(auth.FrontProxyName); err != nil || !strings.Contains(text, `"username":"carol"`) || !strings.Contains(text, `"scopes":["all"]`) {
		t.Errorf("%s, %v", text, err)
	}
	if text, err := who("admin"); !apierrors.IsUnauthorized(err) {
		t.Errorf("a wrong certificate was believed: %s, %v", text, err)
	}
	cm, err := c.client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil || cm.Data["requestheader-client-ca-file"] != string(c.FrontProxy.PEM) || cm.Data["client-ca-file"] != string(c.CA.PEM) {
		t.Errorf("what extension servers read: %v, %v", cm, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
