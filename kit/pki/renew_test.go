package pki_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"knarr.dev/knarr/kit/pki"
)

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	ca, err := pki.Open(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func(name string, at time.Time) {
		t.Helper()
		p, err := ca.Server(name, nil, []string{name}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for f, b := range map[string][]byte{cert: p.CertPEM, key: p.KeyPEM} {
			if err := os.WriteFile(f, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(f, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("one", now)
	failures := 0
	s, err := pki.Files(cert, key, clock, func(error) { failures++ })
	if err != nil {
		t.Fatal(err)
	}
	want := func(name string) {
		t.Helper()
		if have := s.Certificate().Leaf.Subject.CommonName; have != name {
			t.Errorf("certificate of %q, want %q", have, name)
		}
	}
	want("one")
	write("two", now.Add(time.Minute))
	now = now.Add(2 * time.Second)
	want("two")
	if err := os.WriteFile(key, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Second)
	want("two") // a half-written pair takes nobody off the net
	if failures != 1 {
		t.Errorf("%d failures were told, want 1", failures)
	}
	write("three", now.Add(time.Hour))
	now = now.Add(2 * time.Second)
	want("three")
}

func TestIssued(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	ca, err := pki.Open(t.TempDir(), clock)
	if err != nil {
		t.Fatal(err)
	}
	s, err := pki.Issued(func() (*pki.Pair, error) { return ca.Client("u") }, clock, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	first := s.Certificate()
	now = now.Add(200 * 24 * time.Hour)
	if s.Certificate() != first {
		t.Error("the certificate was renewed too early")
	}
	now = now.Add(100 * 24 * time.Hour)
	if s.Certificate() == first || !s.Certificate().Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Error("the certificate was not renewed in time")
	}
}
