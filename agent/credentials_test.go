package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/credentials"
)

func TestPullsUseTheNodesCredentials(t *testing.T) {
	bin := t.TempDir()
	for name, text := range map[string]string{
		"knows":  `echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image","auth":{"reg.example.com":{"username":"u","password":"p"}}}'`,
		"broken": "echo no network >&2; exit 1",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, func(c *Config) {
		c.CredentialBin, c.Credentials = bin, &credentials.Config{Providers: []credentials.Provider{
			{Name: "knows", MatchImages: []string{"reg.example.com"}, DefaultCacheDuration: &metav1.Duration{Duration: time.Minute}},
			{Name: "broken", MatchImages: []string{"lost.example.com"}, DefaultCacheDuration: &metav1.Duration{}},
		}}
	})
	w.cri.Fail = func(method, detail string) error {
		if method == "PullImage" && strings.HasPrefix(detail, "lost") {
			return errors.New("unauthorized")
		}
		return nil
	}
	w.run()
	w.pod("p", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "reg.example.com/x:1" })
	w.wait("p", "running", running)
	if pulls := w.cri.Pulls(); len(pulls) != 1 || pulls[0].Auth.GetUsername() != "u" || pulls[0].Auth.GetPassword() != "p" {
		t.Errorf("pulls: %v", pulls)
	}
	w.pod("lost", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "lost.example.com/x:1" })
	p := w.wait("lost", "told why", waiting("ErrImagePull"))
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, "unauthorized; credential provider broken: exit status 1: no network") {
		t.Errorf("message: %s", m)
	}
}
