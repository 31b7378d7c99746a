package credentials

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"
)

// Whose a credential is decides who may use what it pulls.
func TestOrigins(t *testing.T) {
	bin, docker := t.TempDir(), t.TempDir()
	script(t, bin, "told", answer("Registry", "", `{"reg.example.com":{"username":"told","password":"1"}}`))
	script(t, bin, "plain", answer("Registry", "", `{"reg.example.com":{"username":"plain","password":"1"}}`))
	if err := os.WriteFile(filepath.Join(docker, "config.json"), []byte(`{"auths":{"reg.example.com":{"username":"file","password":"1"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const rest = "matchImages: [reg.example.com], defaultCacheDuration: 10m, apiVersion: credentialprovider.kubelet.k8s.io/v1"
	cfg, err := load(t, bin, `
- {name: told, `+rest+`, tokenAttributes: {serviceAccountTokenAudience: reg, cacheType: ServiceAccount, requireServiceAccount: false}}
- {name: plain, `+rest+`}
`)
	if err != nil {
		t.Fatal(err)
	}
	k := New(cfg, bin, []string{docker}, &accounts{}, clocktesting.NewFakeClock(time.Unix(1000, 0)))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{ServiceAccountName: "sa"}}
	sa := Origin{UID: "u", Namespace: "ns", Name: "sa"}
	for range 2 { // the second time from what is remembered
		list, err := k.Find(t.Context(), "reg.example.com/x", pod)
		if err != nil || len(list) != 3 {
			t.Fatalf("%v, %v", list, err)
		}
		for _, c := range list {
			if told := c.Account != nil && *c.Account == sa; c.Secret != nil || told != (c.Username == "told") || !told && c.Account != nil {
				t.Errorf("%s is of %+v, %+v", c.Username, c.Secret, c.Account)
			}
		}
	}
	if list, err := k.Find(t.Context(), "reg.example.com/x", nil); err != nil || len(list) != 3 || list[1].Account != nil || list[2].Account != nil {
		t.Errorf("without a pod: %v, %v", list, err)
	}
	for image, want := range map[string]bool{"reg.example.com/x": true, "elsewhere.org/x": false} {
		if a, err := k.Account(t.Context(), image, pod); err != nil || (a != nil) != want || want && *a != sa {
			t.Errorf("%s: %v, %v", image, a, err)
		}
	}
	if a, err := k.Account(t.Context(), "reg.example.com/x", &corev1.Pod{}); a != nil || err != nil {
		t.Errorf("without an account: %v, %v", a, err)
	}

	secrets := []*corev1.Secret{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "one", UID: "1"}, Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"reg.example.com":{"username":"one","password":"1"}}`)}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "two", UID: "2"}, Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"reg.example.com":{"username":"two","password":"1"}}}`)}},
	}
	list, err := FromSecrets("reg.example.com/x", secrets)
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, c := range list {
		if c.Account != nil || c.Secret == nil || c.Secret.Name != c.Username || c.Secret.Namespace != "ns" || c.Secret.UID == "" {
			t.Errorf("%s is of %+v", c.Username, c.Secret)
		}
	}
}

func TestHashesTellCredentialsApart(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range []*runtimeapi.AuthConfig{{Username: "a"}, {Password: "a"}, {IdentityToken: "a"}, {Username: "a", Password: "b"}, {Username: "ab"}, {Username: "a", ServerAddress: "b"}} {
		c := Credential{AuthConfig: a}
		if h := c.Hash(); seen[h] || len(h) != 64 || h != c.Hash() {
			t.Errorf("%v: %s", c, h)
		}
		seen[c.Hash()] = true
	}
}
