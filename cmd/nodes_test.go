package cmd

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/kit/pki"
)

func TestNodeRanges(t *testing.T) {
	for _, c := range []struct {
		all, first string
		nodes      int
		last       string // empty: there is no room
	}{
		{"10.244.0.0/16", "10.244.0.0/24", 1, "10.244.0.0/24"},
		{"10.244.0.0/16", "10.244.0.0/24", 3, "10.244.2.0/24"},
		{"10.244.0.0/16", "10.244.255.0/24", 2, ""},
		{"10.0.0.0/8", "10.1.255.0/24", 2, "10.2.0.0/24"},
		{"10.1.2.0/25", "10.1.2.0/25", 2, ""},
		{"10.1.2.0/24", "10.1.2.0/26", 4, "10.1.2.192/26"},
		{"10.1.2.0/24", "10.1.2.0/26", 5, ""},
		{"255.255.0.0/16", "255.255.255.0/24", 2, ""},
	} {
		cfg := defaultConfig()
		cfg.Nodes, cfg.Network.PodCIDR, cfg.Network.NodePodCIDR = c.nodes, c.all, c.first
		got, err := cfg.nodeRanges()
		switch {
		case c.last == "":
			if err == nil || !strings.Contains(err.Error(), "room") {
				t.Errorf("%+v: %v, %v", c, got, err)
			}
			if err := cfg.validate(); err == nil || !strings.Contains(err.Error(), "network.podCIDR") {
				t.Errorf("%+v is valid: %v", c, err)
			}
		case err != nil || len(got) != c.nodes || got[c.nodes-1].String() != c.last:
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}

// A further node takes nothing of the first one's: names, addresses, directories
// and control group are its own.
func TestFurtherNode(t *testing.T) {
	cfg := defaultConfig()
	cfg.Nodes, cfg.Node.Name, cfg.Node.Listen = 2, "big", "192.0.2.1:10250"
	n := cfg.further(2, netip.MustParsePrefix("10.244.1.0/24")).cfg
	if err := n.validate(); err != nil {
		t.Error(err)
	}
	for what, pair := range map[string][2]string{
		"name":      {n.Node.Name, "big-2"},
		"address":   {n.Node.IP, "10.244.1.1"},
		"pod range": {n.Network.NodePodCIDR, "10.244.1.0/24"},
		"listens":   {n.Node.Listen, ":10250"},
		"group":     {n.group(), "knarr-2"},
		"data":      {n.DataDir, "/var/lib/knarr/nodes/big-2"},
		"run":       {n.RunDir, "/run/knarr/nodes/big-2"},
		"services":  {n.Network.ServiceCIDR, cfg.Network.ServiceCIDR},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
		}
	}
}

// The agent asks the API who may use it, and remembers the verdict for a while.
func TestReviewer(t *testing.T) {
	fake := clienttest.New()
	asked, now := 0, time.Unix(0, 0)
	allowed := map[string]bool{"monitor": true}
	failing := false
	fake.React = func(_ string, _ client.Key, o client.Object) error {
		asked++
		if failing {
			return errors.New("down")
		}
		r := o.(*authorizationv1.SubjectAccessReview)
		if a := r.Spec.ResourceAttributes; a.Resource != "nodes" || a.Subresource != "proxy" || a.Name != "n" {
			t.Errorf("asked about %+v", a)
		}
		r.Name = "review-" + time.Duration(asked).String()
		r.Status.Allowed = allowed[r.Spec.User]
		return nil
	}
	v := &reviewer{client: fake, node: "n", now: func() time.Time { return now }}
	request := func(user string, groups ...string) *http.Request {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: user, Organization: groups}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		r := httptest.NewRequest(http.MethodGet, "/containerLogs/n/p/c", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert}}}
		return r
	}
	check := func(what string, r *http.Request, ok bool, questions int) {
		t.Helper()
		if err := v.authorize(r); (err == nil) != ok || asked != questions {
			t.Errorf("%s: %v after %d questions, want %d", what, err, asked, questions)
		}
	}
	check("no certificate", httptest.NewRequest(http.MethodGet, "/pods", nil), false, 0)
	check("the API server itself", request("kube-apiserver-kubelet-client", auth.GroupMasters), true, 0)
	check("permitted", request("monitor"), true, 1)
	check("permitted, known", request("monitor"), true, 1)
	check("forbidden", request("other"), false, 2)
	check("forbidden, known", request("other"), false, 2)
	allowed["other"] = true
	now = now.Add(forbiddenFor + time.Second)
	check("permitted since", request("other"), true, 3)
	now = now.Add(allowedFor + time.Second)
	failing = true
	check("no answer", request("monitor"), false, 4)
}

// The certificate that a node is given serves both ways.
func TestNodeCertificateJoins(t *testing.T) {
	ca, err := pki.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	cfg := defaultConfig()
	cfg.Node.IP = "10.244.1.1"
	pair, err := nodeCertificate(ca, cfg)
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/kubeconfig"
	if err := writeKubeconfig(file, "", "c", "https://127.0.0.1:1", ca, pair); err != nil {
		t.Fatal(err)
	}
	j := JoinConfig{Kubeconfig: file}
	rc, err := j.rest()
	if err != nil {
		t.Fatal(err)
	}
	acc, err := j.serving(rc, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	shown, err := acc.serving(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf := shown.Leaf
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: acc.clients, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Errorf("use %v: %v", use, err)
		}
	}
	if err := leaf.VerifyHostname("10.244.1.1"); err != nil {
		t.Error(err)
	}
	if _, err := (&JoinConfig{}).rest(); err == nil {
		t.Error("no way to the cluster is no error")
	}
}
