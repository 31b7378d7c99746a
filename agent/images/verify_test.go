package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	config "k8s.io/kubelet/config/v1alpha1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/credentials"
	"knarr.dev/knarr/agent/critest"
)

const locked = "reg.example.com/team/app:1"

// node is one with a registry that lets users with the right password have images; the
// user "" is anybody.
type node struct {
	t    *testing.T
	rt   *critest.Runtime
	clk  *clocktesting.FakeClock
	root string
	log  bytes.Buffer
	cfg  Config
	m    *Manager

	mu     sync.Mutex
	open   map[string]string // passwords by user
	during func()            // called in a pull
}

func newNode(t *testing.T, verify Verification) *node {
	n := &node{t: t, rt: critest.New(), clk: clocktesting.NewFakeClock(time.Unix(1_900_000_000, 0)), root: t.TempDir(), open: map[string]string{"alice": "secret"}}
	n.rt.OnPull = func(req *runtimeapi.PullImageRequest) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.during != nil {
			n.during()
		}
		if want, ok := n.open[req.Auth.GetUsername()]; !ok || want != req.Auth.GetPassword() {
			return errors.New("unauthorized")
		}
		return nil
	}
	n.cfg = Config{CRI: n.rt.Client(t), Root: n.root, Verify: verify, Clock: n.clk, Log: slog.New(slog.NewTextHandler(&n.log, nil))}
	n.restart()
	return n
}

// restart replaces the manager by one that knows what is on the disk.
func (n *node) restart() {
	n.t.Helper()
	m, err := New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.m = m
}

// secret is a pull secret of the registry.
func secret(namespace, name, uid, user, password string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: fmt.Appendf(nil, `{"auths":{"reg.example.com":{"username":%q,"password":%q}}}`, user, password)}}
}

// ensure has a new pod want an image. The answer is "used", "pulled" or why it may not.
func (n *node) ensure(image string, policy corev1.PullPolicy, secrets ...*corev1.Secret) string {
	n.t.Helper()
	before := len(n.rt.Pulls())
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{ServiceAccountName: "builder"}}
	var said []string
	img, err := n.m.Ensure(n.t.Context(), Request{PodUID: fmt.Sprint(before, n.clk.Now()), Pod: pod, Image: image, Policy: policy, Secrets: secrets, Event: func(_, reason, text string) { said = append(said, reason+" "+text) }})
	n.clk.Step(time.Second)
	pulled := len(n.rt.Pulls()) > before
	var e *Error
	switch {
	case errors.As(err, &e):
		if !strings.Contains(strings.Join(said, "\n"), e.Message) {
			n.t.Errorf("events %q do not tell %q", said, e.Message)
		}
		return e.Reason
	case err != nil || img.Ref == "":
		n.t.Fatalf("%s: %+v, %v", image, img, err)
	case pulled:
		return "pulled"
	}
	if want := fmt.Sprintf("Pulled Container image %q already present on machine and can be accessed by the pod", image); !slices.Equal(said, []string{want}) {
		n.t.Errorf("events %q", said)
	}
	return "used"
}

func (n *node) expect(want, image string, policy corev1.PullPolicy, secrets ...*corev1.Secret) {
	n.t.Helper()
	if got := n.ensure(image, policy, secrets...); got != want {
		n.t.Errorf("%s with policy %s: %s, want %s; log:\n%s", image, policy, got, want, n.log.String())
	}
}

// files lists what lies in a folder of records.
func (n *node) files(dir string) []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.root, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// record is the one on the disk for an image.
func (n *node) record(ref string) config.ImagePulledRecord {
	n.t.Helper()
	var rec config.ImagePulledRecord
	b, err := os.ReadFile(filepath.Join(n.root, pulledDir, fileName(ref)))
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return rec
}

const (
	ifNotPresent = corev1.PullIfNotPresent
	never        = corev1.PullNever
)

// What each policy lets pods without credentials do, whose registry refuses them.
func TestPoliciesOfVerification(t *testing.T) {
	const used, failed, refused = "used", ErrImagePull, ErrImageNeverPull
	for _, row := range []struct {
		policy                      string
		list                        []string
		pulled, preloaded, unlisted string // with IfNotPresent
	}{
		{"", nil, failed, used, used},
		{NeverVerifyPreloadedImages, nil, failed, used, used},
		{NeverVerify, nil, used, used, used},
		{AlwaysVerify, nil, failed, failed, failed},
		{NeverVerifyAllowlistedImages, []string{"docker.io/library/busybox", "reg.example.com/team/*"}, failed, used, failed},
	} {
		t.Run(row.policy, func(t *testing.T) {
			v := Verification{Policy: row.policy, Allowlist: row.list}
			if err := v.Validate(); err != nil {
				t.Fatal(err)
			}
			n := newNode(t, v)
			for _, name := range []string{"busybox:1", "reg.example.com/team/sub/other:1", "reg.example.com/teams:1"} {
				n.rt.AddImage(name, &runtimeapi.Image{Id: "sha256:" + name})
			}
			n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
			for range 2 { // also after a restart
				for image, want := range map[string]string{locked: row.pulled, "busybox:1": row.preloaded, "reg.example.com/team/sub/other:1": row.preloaded, "reg.example.com/teams:1": row.unlisted} {
					n.expect(want, image, ifNotPresent)
					if want == failed {
						want = refused
					}
					n.expect(want, image, never)
				}
				n.expect(used, locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
				n.expect(used, locked, never, secret("a", "s", "1", "alice", "secret"))
				n.restart()
			}
			n.expect(refused, "reg.example.com/none:1", never)
		})
	}
}

func TestCredentialsAreRemembered(t *testing.T) {
	n := newNode(t, Verification{})
	n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
	n.expect(ErrImagePull, locked, ifNotPresent)
	n.expect(ErrImagePull, locked, ifNotPresent, secret("b", "s", "2", "mallory", "guess"))
	n.expect(ErrImageNeverPull, locked, never, secret("b", "s", "2", "mallory", "guess"))
	delete(n.open, "alice") // the registry is not asked again for what worked
	n.expect("used", locked, ifNotPresent, secret("b", "copy", "3", "alice", "secret"))
	n.expect("used", locked, never, secret("a", "s", "1", "alice", "rotated"))
	n.restart()
	n.expect("used", locked, ifNotPresent, secret("b", "copy", "3", "alice", "again"))
	n.expect("used", locked, ifNotPresent, secret("c", "s", "4", "alice", "rotated"))
	n.expect(ErrImagePull, locked, ifNotPresent, secret("a", "s", "other", "alice", "wrong")) // a secret made anew
	n.expect(ErrImagePull, "reg.example.com/team/app:2", ifNotPresent, secret("a", "s", "1", "alice", "rotated"))

	rec := n.record("sha256:" + locked)
	var got []string
	for _, s := range rec.CredentialMapping["reg.example.com/team/app"].KubernetesSecrets {
		got = append(got, s.Namespace+"/"+s.Name+"/"+s.UID)
		if len(s.CredentialHash) != 64 {
			t.Errorf("hash %q", s.CredentialHash)
		}
	}
	slices.Sort(got)
	if want := []string{"a/s/1", "b/copy/3", "c/s/4"}; !slices.Equal(got, want) || rec.Kind != "ImagePulledRecord" || rec.ImageRef != "sha256:"+locked {
		t.Errorf("record %+v, want secrets %v", rec, want)
	}
	if left := n.files(pullingDir); len(left) > 0 {
		t.Errorf("intents are left: %v", left)
	}
}

// What anybody, or the node, may pull may be used by all; what is the same by another
// name may not.
func TestImagesOfTheWholeNode(t *testing.T) {
	n := newNode(t, Verification{})
	n.open[""] = ""
	n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
	n.expect("pulled", locked, ifNotPresent) // anonymously, which makes it public
	delete(n.open, "")
	n.expect("used", locked, ifNotPresent)
	n.expect("used", locked, never, secret("b", "s", "2", "mallory", "guess"))
	n.rt.AddImage("mirror.example.com/app:1", &runtimeapi.Image{Id: "sha256:" + locked})
	n.expect(ErrImagePull, "mirror.example.com/app:1", ifNotPresent)
	n.rt.AddImage("reg.example.com/team/app:newest", &runtimeapi.Image{Id: "sha256:" + locked})
	n.expect("used", "reg.example.com/team/app:newest", never)
	if got := n.record("sha256:" + locked).CredentialMapping["reg.example.com/team/app"]; !got.NodePodsAccessible || got.KubernetesSecrets != nil {
		t.Errorf("record %+v", got)
	}

	n.cfg.Keys = func(context.Context, string, *corev1.Pod) ([]credentials.Credential, error) {
		return []credentials.Credential{{AuthConfig: &runtimeapi.AuthConfig{Username: "alice", Password: "secret"}}}, nil
	}
	n.restart()
	n.expect("pulled", "reg.example.com/node:1", ifNotPresent, secret("b", "s", "2", "mallory", "guess"))
	n.cfg.Keys = nil
	n.restart()
	n.expect("used", "reg.example.com/node:1", ifNotPresent)
}

func TestImagesOfServiceAccounts(t *testing.T) {
	n := newNode(t, Verification{})
	origin := &credentials.Origin{UID: "u", Namespace: "ns", Name: "builder"}
	n.cfg.Keys = func(context.Context, string, *corev1.Pod) ([]credentials.Credential, error) {
		return []credentials.Credential{{AuthConfig: &runtimeapi.AuthConfig{Username: "alice", Password: "secret"}, Account: origin}}, nil
	}
	n.cfg.Account = func(context.Context, string, *corev1.Pod) (*credentials.Origin, error) { return origin, nil }
	n.restart()
	n.expect("pulled", locked, ifNotPresent)
	delete(n.open, "alice")
	n.restart()
	n.expect("used", locked, never)
	origin = &credentials.Origin{UID: "made anew", Namespace: "ns", Name: "builder"}
	n.expect(ErrImagePull, locked, ifNotPresent)
	n.cfg.Account = func(context.Context, string, *corev1.Pod) (*credentials.Origin, error) {
		return nil, errors.New("no answer")
	}
	n.restart()
	n.expect(ErrImageNeverPull, locked, never)
}

// An image that came while nobody noted whose it is, is nobody's.
func TestDeathBetweenPullAndRecord(t *testing.T) {
	for _, known := range []bool{true, false} { // whether the image is there when knarr is back
		n := newNode(t, Verification{})
		intent := filepath.Join(n.root, pullingDir, fileName(locked))
		var b []byte
		n.during = func() {
			var err error
			if b, err = os.ReadFile(intent); err != nil {
				t.Error(err) // it must be there before the pull is
			}
		}
		n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
		n.during = nil
		if err := errors.Join(os.RemoveAll(filepath.Join(n.root, pulledDir)), os.WriteFile(intent, b, 0o600)); err != nil {
			t.Fatal(err)
		}
		remove := func() {
			if _, err := n.rt.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: locked}}); err != nil {
				t.Fatal(err)
			}
		}
		if !known {
			remove()
		}
		n.restart()
		n.rt.AddImage("busybox:1", &runtimeapi.Image{Id: "sha256:busybox"})
		n.expect("used", "busybox:1", never)
		if !known { // the runtime finishes what it was told to pull
			n.rt.AddImage(locked, &runtimeapi.Image{Id: "sha256:" + locked})
		}
		n.expect(ErrImageNeverPull, locked, never, secret("a", "s", "1", "alice", "secret"))
		n.expect(ErrImagePull, locked, ifNotPresent)
		n.restart()
		n.expect(ErrImageNeverPull, locked, never)
		n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
		n.expect("used", locked, never, secret("a", "s", "1", "alice", "secret"))
		if left := n.files(pullingDir); len(left) > 0 {
			t.Errorf("intents are left: %v", left)
		}
	}
}

// An image that somebody else brought stays so when a pull of it fails.
func TestFailedPullsLeaveNothing(t *testing.T) {
	n := newNode(t, Verification{})
	n.rt.AddImage(locked, &runtimeapi.Image{Id: "sha256:" + locked})
	n.during = func() {
		if _, ours := n.m.records.known("sha256:"+locked, locked); !ours {
			t.Error("an image that is being pulled counts as brought by somebody else")
		}
		if _, ours := n.m.records.known("sha256:"+locked, "reg.example.com/team/app@sha256:1"); !ours {
			t.Error("by its digest an image that is being pulled counts as brought by somebody else")
		}
		if _, ours := n.m.records.known("sha256:other", "reg.example.com/team/app:2"); ours {
			t.Error("an image with another tag is taken for the one that is being pulled")
		}
	}
	n.expect(ErrImagePull, locked, corev1.PullAlways)
	n.during = nil
	n.expect("used", locked, never)
	if left := slices.Concat(n.files(pullingDir), n.files(pulledDir)); len(left) > 0 {
		t.Errorf("records are left: %v", left)
	}
}

func TestBrokenRecords(t *testing.T) {
	n := newNode(t, Verification{})
	n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
	path := filepath.Join(n.root, pulledDir, fileName("sha256:"+locked))
	for _, text := range []string{"{", "", `{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1alpha1","imageRef":"sha256:other","credentialMapping":{"reg.example.com/team/app":{"nodePodsAccessible":true}}}`, `{"kind":"Other"}`} {
		n.log.Reset()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.restart()
		if said := n.log.String(); !strings.Contains(said, path) || !strings.Contains(said, "level=ERROR") {
			t.Errorf("the log does not name the file: %s", said)
		}
		n.expect(ErrImageNeverPull, locked, never, secret("a", "s", "1", "alice", "secret"))
		n.expect(ErrImagePull, locked, ifNotPresent)
		n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
		n.restart()
		n.expect("used", locked, never, secret("a", "s", "1", "alice", "secret"))
	}
	// So does an intent, by its name alone.
	n.rt.AddImage("busybox:latest", &runtimeapi.Image{Id: "sha256:busybox"})
	if err := errors.Join(os.MkdirAll(filepath.Join(n.root, pullingDir), 0o700), os.WriteFile(filepath.Join(n.root, pullingDir, fileName("busybox:latest")), []byte("["), 0o600)); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.expect(ErrImageNeverPull, "busybox", never)
	if err := os.WriteFile(filepath.Join(n.root, pulledDir, fileName("sha256:gone")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.clk.Step(abandoned)
	n.prune()
	if left := slices.Concat(n.files(pullingDir), n.files(pulledDir)); len(left) != 1 {
		t.Errorf("records are left: %v", left)
	}
	n.expect("used", "busybox", never)
}

// prune has the manager forget what is not there.
func (n *node) prune() {
	n.t.Helper()
	before := n.clk.Now()
	list, err := n.rt.ListImages(n.t.Context(), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	n.m.Prune(n.t.Context(), list.Images, before)
}

func TestRecordsGoWithTheirImages(t *testing.T) {
	n := newNode(t, Verification{})
	alice := secret("a", "s", "1", "alice", "secret")
	const other = "reg.example.com/other:1"
	n.expect("pulled", locked, ifNotPresent, alice)
	n.expect("pulled", other, ifNotPresent, alice)
	before := n.clk.Now()
	remove := func(image string) {
		if _, err := n.rt.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
			t.Fatal(err)
		}
	}
	remove(locked)
	n.restart()
	n.prune()
	if left := n.files(pulledDir); !slices.Equal(left, []string{fileName("sha256:" + other)}) {
		t.Errorf("records are left: %v", left)
	}
	n.rt.AddImage(locked, &runtimeapi.Image{Id: "sha256:" + locked}) // imported
	n.expect("used", locked, never)
	// An image that was pulled again since the list was made keeps its record, also if that
	// says nothing new.
	remove(other)
	n.expect("pulled", other, ifNotPresent, alice)
	n.m.Prune(t.Context(), nil, before)
	n.m.Removed("sha256:"+other, before)
	n.expect(ErrImageNeverPull, other, never)
	n.m.Removed("sha256:"+other, n.clk.Now())
	if left := n.files(pulledDir); len(left) > 0 {
		t.Errorf("records are left: %v", left)
	}
}

// Where nothing can be recorded nothing is pulled.
func TestRecordsMustBeWritten(t *testing.T) {
	n := newNode(t, Verification{})
	if err := os.WriteFile(filepath.Join(n.root, pullingDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.expect(ErrImagePull, locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
	if len(n.rt.Pulls()) > 0 {
		t.Error("it was pulled")
	}
	if _, err := New(n.cfg); err == nil {
		t.Error("a file was taken for a folder")
	}
	// An image whose record cannot be written is nobody's after the next start.
	n = newNode(t, Verification{})
	if err := os.WriteFile(filepath.Join(n.root, pulledDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
	if err := os.Remove(filepath.Join(n.root, pulledDir)); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.expect(ErrImageNeverPull, locked, never)
}

// Pods of many credentials at once get what is theirs.
func TestPullsSideBySide(t *testing.T) {
	n := newNode(t, Verification{})
	n.expect("pulled", locked, ifNotPresent, secret("a", "s", "1", "alice", "secret"))
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			r := Request{PodUID: fmt.Sprint(i), Image: locked, Policy: []corev1.PullPolicy{ifNotPresent, never, corev1.PullAlways}[i%3], Event: func(string, string, string) {}}
			if i%2 == 0 {
				r.Secrets = []*corev1.Secret{secret(fmt.Sprint("ns", i), "s", fmt.Sprint(i), "alice", "secret")}
			}
			if _, err := n.m.Ensure(t.Context(), r); (err == nil) != (i%2 == 0) {
				t.Errorf("pod %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	n.restart()
	if left := n.files(pullingDir); len(left) > 0 {
		t.Errorf("intents are left: %v", left)
	}
	n.expect("used", locked, never, secret("ns6", "s", "6", "alice", "rotated"))
}
