package pki

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ca, err := Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir, time.Now)
	if err != nil || !again.Cert.Equal(ca.Cert) {
		t.Fatalf("opened again: another authority, %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	server, err := again.Server("api", nil, []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "127.0.0.1"} {
		if _, err := server.TLS.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: ca.Pool()}); err != nil {
			t.Errorf("as %s: %v", host, err)
		}
	}
	if _, err := server.TLS.Leaf.Verify(x509.VerifyOptions{DNSName: "elsewhere", Roots: ca.Pool()}); err == nil {
		t.Error("valid for a name that it was not issued for")
	}
	client, err := again.Client("jane", "dev")
	if err != nil || client.TLS.Leaf.Subject.CommonName != "jane" || client.TLS.Leaf.Subject.Organization[0] != "dev" {
		t.Errorf("client: %v, %v", client.TLS.Leaf.Subject, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, time.Now); err == nil {
		t.Error("a broken key was accepted")
	}
}
