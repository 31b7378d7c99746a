package credentials

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
)

// script is a plugin that notes what it reads and answers with text.
func script(t *testing.T, bin, name, answer string) (asked func() []string) {
	t.Helper()
	log := filepath.Join(bin, name+".log")
	text := fmt.Sprintf("#!/bin/sh\n{ cat; echo \" args=$* env=$FLAVOUR\"; } >>%s\ncat <<'END'\n%s\nEND\n", log, answer)
	if strings.HasPrefix(answer, "exit") {
		text = "#!/bin/sh\necho broken >&2\n" + answer + "\n"
	}
	if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return func() []string {
		b, err := os.ReadFile(log)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

func answer(keyType, duration, auth string) string {
	return `{"kind":"CredentialProviderResponse","apiVersion":"` + apiVersion + `","cacheKeyType":"` + keyType + `"` + duration + `,"auth":` + auth + `}`
}

func load(t *testing.T, bin, providers string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n"+providers), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file, bin)
}

type accounts struct{ tokens int }

func (a *accounts) Account(_ context.Context, ns, name string) (*corev1.ServiceAccount, error) {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: "u", Annotations: map[string]string{"role": "puller", "other": "x"}}}, nil
}

func (a *accounts) Token(_ context.Context, pod *corev1.Pod, audience string) (string, error) {
	a.tokens++
	return audience + "/" + pod.Name, nil
}

func (k *Keyring) list(t *testing.T, image string, pod *corev1.Pod) string {
	t.Helper()
	list, err := k.Find(t.Context(), image, pod)
	var out []string
	for _, a := range list {
		out = append(out, a.Username+":"+a.Password)
	}
	if err != nil {
		out = append(out, "error "+err.Error())
	}
	return strings.Join(out, " ")
}

func TestPluginsAreAskedAndRemembered(t *testing.T) {
	bin, clk := t.TempDir(), clocktesting.NewFakeClock(time.Unix(1000, 0))
	byImage := script(t, bin, "by-image", answer("Image", "", `{"reg.example.com":{"username":"i","password":"1"},"elsewhere.org":{"username":"no","password":"no"}}`))
	byRegistry := script(t, bin, "by-registry", answer("Registry", `,"cacheDuration":"1m"`, `{"*.example.com":{"username":"r","password":"2"}}`))
	global := script(t, bin, "global", answer("Global", `,"cacheDuration":"0s"`, `null`))
	cfg, err := load(t, bin, `
- {name: by-image, matchImages: [reg.example.com/team], defaultCacheDuration: 10m, apiVersion: credentialprovider.kubelet.k8s.io/v1, args: [get, "-v"], env: [{name: FLAVOUR, value: sweet}]}
- {name: by-registry, matchImages: ["*.example.com"], defaultCacheDuration: 10m, apiVersion: credentialprovider.kubelet.k8s.io/v1}
- {name: global, matchImages: ["*.*.*"], defaultCacheDuration: 10m, apiVersion: credentialprovider.kubelet.k8s.io/v1}
`)
	if err != nil {
		t.Fatal(err)
	}
	k := New(cfg, bin, nil, nil, clk)
	check := func(image, want string) {
		t.Helper()
		if got := k.list(t, image, nil); got != want {
			t.Errorf("%s: %q, want %q", image, got, want)
		}
	}
	check("reg.example.com/team/a:1", "i:1 r:2")
	check("reg.example.com/team/a:2", "i:1 r:2")
	check("reg.example.com/team/b:1", "i:1 r:2")
	check("reg.example.com/other", "r:2")
	check("busybox", "")
	if a, b, c := len(byImage()), len(byRegistry()), len(global()); a != 2 || b != 1 || c != 4 {
		t.Errorf("asked %d, %d and %d times", a, b, c)
	}
	if got := byImage()[0]; got != `{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"reg.example.com/team/a:1"} args=get -v env=sweet` {
		t.Errorf("asked %s", got)
	}
	clk.Step(2 * time.Minute)
	check("reg.example.com/team/a:1", "i:1 r:2")
	if a, b := len(byImage()), len(byRegistry()); a != 2 || b != 2 {
		t.Errorf("asked %d and %d times", a, b)
	}
}

func TestServiceAccounts(t *testing.T) {
	bin, clk := t.TempDir(), clocktesting.NewFakeClock(time.Unix(1000, 0))
	perPod := script(t, bin, "per-pod", answer("Registry", "", `{"reg.example.com":{"username":"p","password":"1"}}`))
	perAccount := script(t, bin, "per-account", answer("Registry", "", `{"reg.example.com":{"username":"a","password":"1"}}`))
	lacking := script(t, bin, "lacking", answer("Registry", "", `{}`))
	const rest = "matchImages: [reg.example.com], defaultCacheDuration: 10m, apiVersion: credentialprovider.kubelet.k8s.io/v1, tokenAttributes: {serviceAccountTokenAudience: reg, "
	cfg, err := load(t, bin, `
- {name: per-pod, `+rest+`cacheType: Token, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [role]}}
- {name: per-account, `+rest+`cacheType: ServiceAccount, requireServiceAccount: false, optionalServiceAccountAnnotationKeys: [nothing]}}
- {name: lacking, `+rest+`cacheType: Token, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [missing]}}
`)
	if err != nil {
		t.Fatal(err)
	}
	k := New(cfg, bin, nil, &accounts{}, clk)
	pod := func(name, account string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{ServiceAccountName: account}}
	}
	const failure = " error credential provider lacking: service account ns/sa lacks the annotation missing"
	for _, name := range []string{"one", "two", "two"} {
		if got := k.list(t, "reg.example.com/x", pod(name, "sa")); got != "p:1 a:1"+failure {
			t.Errorf("pod %s: %s", name, got)
		}
	}
	if got := k.list(t, "reg.example.com/x", pod("static", "")); got != "a:1" {
		t.Errorf("without an account: %s", got)
	}
	if a, b, c := len(perPod()), len(perAccount()), len(lacking()); a != 2 || b != 2 || c != 0 {
		t.Errorf("asked %d, %d and %d times", a, b, c)
	}
	if got := perPod()[1]; !strings.Contains(got, `"serviceAccountToken":"reg/two","serviceAccountAnnotations":{"role":"puller"}`) {
		t.Errorf("asked %s", got)
	}
}

func TestBrokenPlugins(t *testing.T) {
	bin := t.TempDir()
	for name, text := range map[string]string{"dies": "exit 3", "babbles": "hello", "other": `{"kind":"X","apiVersion":"v1"}`, "key": answer("Everything", "", "{}")} {
		script(t, bin, name, text)
		cfg, err := load(t, bin, "- {name: "+name+", matchImages: [reg.example.com], defaultCacheDuration: 0s, apiVersion: credentialprovider.kubelet.k8s.io/v1}\n")
		if err != nil {
			t.Fatal(err)
		}
		got := New(cfg, bin, nil, nil, clocktesting.NewFakeClock(time.Now())).list(t, "reg.example.com/x", nil)
		if !strings.HasPrefix(got, "error credential provider "+name+": ") || name == "dies" && !strings.HasSuffix(got, "exit status 3: broken") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	bin := t.TempDir()
	script(t, bin, "ok", "")
	if err := os.WriteFile(filepath.Join(bin, "text"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const good = "matchImages: [a.b], defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1"
	for text, want := range map[string]string{
		"- {name: ok, " + good + "}":                             "",
		"- {name: none, " + good + "}":                           "no such file",
		"- {name: text, " + good + "}":                           "is no program",
		"- {name: ../ok, " + good + "}":                          "must be that of a program",
		"- {name: ok, " + good + "}\n- {name: ok, " + good + "}": "twice",
		"- {name: ok, defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1}":                                                                                 "matchImages",
		"- {name: ok, matchImages: [a.b], apiVersion: credentialprovider.kubelet.k8s.io/v1}":                                                                                       "defaultCacheDuration",
		"- {name: ok, matchImages: [a.b], defaultCacheDuration: 1m, apiVersion: v9}":                                                                                               "want credentialprovider",
		"- {name: ok, " + good + ", tokenAttributes: {serviceAccountTokenAudience: a, cacheType: x, requireServiceAccount: true}}":                                                 "tokenAttributes",
		"- {name: ok, " + good + ", tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: false, requiredServiceAccountAnnotationKeys: [a]}}": "need requireServiceAccount",
		"- {name: ok, " + good + ", surprise: 1}": "unknown field",
	} {
		_, err := load(t, bin, text+"\n")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestDockerFiles(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(second, "config.json"), []byte(`{"auths":{"reg.example.com":{"auth":"dTpw"}},"credsStore":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	k := New(nil, "", []string{first, second}, nil, clocktesting.NewFakeClock(time.Now()))
	if got := k.list(t, "reg.example.com/x", nil); got != "u:p" {
		t.Error(got)
	}
	if err := os.WriteFile(filepath.Join(first, ".dockercfg"), []byte(`{"reg.example.com/x":{"username":"f","password":"g"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := k.list(t, "reg.example.com/x/y", nil); got != "f:g" {
		t.Error(got)
	}
	if got := k.list(t, "reg.example.com:5000/x", nil); got != "" {
		t.Error(got)
	}
}
