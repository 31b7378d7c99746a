package images

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/credentials"
	"knarr.dev/knarr/agent/critest"
)

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"busybox": "busybox:latest", "busybox:1": "busybox:1", "host:5000/a": "host:5000/a:latest", "a@sha256:1": "a@sha256:1",
	} {
		if got := withTag(in); got != want {
			t.Errorf("withTag(%s) = %s, want %s", in, got, want)
		}
	}
	if checkName("Bad Name") == nil || checkName("ok/name:tag") != nil {
		t.Error("names are judged wrongly")
	}
}

func TestCredentials(t *testing.T) {
	s := &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(
		`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"*.example.com":{"username":"a","password":"b"},"reg.example.com/team":{"username":"t","password":"x"}}}`)}}
	for image, want := range map[string]string{"busybox": "u:p", "reg.example.com/team/x:1": "t:x a:b", "reg.example.com/other": "a:b", "elsewhere.org/x": ""} {
		var got []string
		list, err := credentials.FromSecrets(image, []*corev1.Secret{s})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range list {
			got = append(got, a.Username+":"+a.Password)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", image, got, want)
		}
	}
}

// A pull secret that cannot be read keeps no other from its use, and is named when the
// pull fails.
func TestBrokenPullSecrets(t *testing.T) {
	secret := func(name, text string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(text)}}
	}
	secrets := []*corev1.Secret{secret("list", `{"auths":[]}`), secret("code", `{"auths":{"example.com":{"auth":"?"}}}`), secret("good", `{"auths":{"example.com":{"username":"a","password":"b"}}}`)}
	list, err := credentials.FromSecrets("example.com/x:1", secrets)
	if len(list) != 1 || list[0].Username != "a" {
		t.Errorf("the good secret is not used: %v", list)
	}
	const named = "pull secret list: it is no docker configuration"
	if err == nil || !strings.Contains(err.Error(), named) || !strings.Contains(err.Error(), "pull secret code: auths[example.com].auth: illegal base64") {
		t.Errorf("error %v", err)
	}
	rt := critest.New()
	rt.Fail = func(method, _ string) error {
		if method == "PullImage" {
			return errors.New("unauthorized")
		}
		return nil
	}
	var events []string
	m, err := New(Config{CRI: rt.Client(t), Root: t.TempDir(), Clock: clocktesting.NewFakeClock(time.Unix(1000, 0))})
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Ensure(t.Context(), Request{Image: "example.com/x:1", Policy: corev1.PullAlways, Secrets: secrets[:1], PodUID: "u", Event: func(_, _, text string) { events = append(events, text) }})
	if err == nil || !strings.Contains(err.Error(), named) || !strings.Contains(strings.Join(events, "\n"), named) {
		t.Errorf("pull: %v, events %q", err, events)
	}
}

func TestPullsAreJoinedAndBackOff(t *testing.T) {
	rt := critest.New()
	enter, leave := make(chan struct{}, 8), make(chan struct{})
	fail := errors.New("no route")
	var mu sync.Mutex
	rt.Fail = func(method, _ string) error {
		if method != "PullImage" {
			return nil
		}
		enter <- struct{}{}
		<-leave
		mu.Lock()
		defer mu.Unlock()
		return fail
	}
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	m, err := New(Config{CRI: rt.Client(t), Root: t.TempDir(), Clock: clk})
	if err != nil {
		t.Fatal(err)
	}
	req := Request{PodUID: "u", Image: "b:1", Policy: corev1.PullIfNotPresent, Event: func(string, string, string) {}}
	results := make(chan error, 2)
	for range 2 {
		go func() { _, err := m.Ensure(t.Context(), req); results <- err }()
	}
	<-enter
	close(leave)
	for range 2 {
		var e *Error
		if err := <-results; !errors.As(err, &e) || e.Reason != ErrImagePull && e.Reason != ImagePullBackOff {
			t.Fatalf("error %v", err)
		}
	}
	var e *Error
	if _, err := m.Ensure(t.Context(), req); !errors.As(err, &e) || e.Reason != ImagePullBackOff {
		t.Fatalf("error %v, want a back-off", err)
	}
	mu.Lock()
	fail = nil
	mu.Unlock()
	clk.Step(time.Minute)
	img, err := m.Ensure(t.Context(), req)
	if err != nil || img.Ref != "sha256:b:1" {
		t.Fatalf("image %+v, %v", img, err)
	}
}
