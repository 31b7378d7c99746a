package volumes

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
)

// objects serves one ConfigMap and one Secret.
type objects struct {
	cm     *corev1.ConfigMap
	secret *corev1.Secret
}

func (o *objects) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	if o.cm == nil || o.cm.Name != name {
		return nil, apierrors.NewNotFound(corev1.Resource("configmap"), name)
	}
	return o.cm, nil
}

func (o *objects) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	if o.secret == nil || o.secret.Name != name {
		return nil, apierrors.NewNotFound(corev1.Resource("secret"), name)
	}
	return o.secret, nil
}

func TestReadOnlyVolumes(t *testing.T) {
	claim := func(readOnly bool) corev1.VolumeSource {
		return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ReadOnly: readOnly}}
	}
	for i, tc := range []struct {
		source corev1.VolumeSource
		want   bool
	}{{claim(true), true}, {claim(false), false}, {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}, true}, {corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, false}} {
		if got := ReadOnly(&corev1.Volume{VolumeSource: tc.source}); got != tc.want {
			t.Errorf("%d: %v", i, got)
		}
	}
}

// issuer answers token requests with a new token each.
type issuer struct {
	client.Interface
	now    func() time.Time
	issued int
	last   *authenticationv1.TokenRequest
}

func (i *issuer) Create(_ context.Context, k client.Key, obj client.Object) (client.Object, error) {
	i.issued++
	r := obj.(*authenticationv1.TokenRequest)
	i.last = r.DeepCopy()
	r.Status.Token = k.Name + strings.Repeat("+", i.issued)
	r.Status.ExpirationTimestamp = metav1.NewTime(i.now().Add(time.Duration(*r.Spec.ExpirationSeconds) * time.Second))
	return r, nil
}

func setUp(t *testing.T) (*Manager, *objects, *issuer, *clocktesting.FakeClock) {
	t.Helper()
	clk := clocktesting.NewFakeClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	o, i := &objects{}, &issuer{Interface: clienttest.New(), now: clk.Now}
	m := New(Config{Root: t.TempDir(), Client: i, Objects: o, Clock: clk, Allocatable: func() corev1.ResourceList { return nil }, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		if err := m.Cleanup("u"); err != nil {
			t.Error(err)
		}
	})
	return m, o, i, clk
}

func pod(v ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u", Labels: map[string]string{"b": "2", "a": "1"}},
		Spec: corev1.PodSpec{Volumes: v, ServiceAccountName: "sa", Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
			Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}}}}}}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestConfigMapIsReplacedInOneStep(t *testing.T) {
	m, o, _, _ := setUp(t)
	o.cm = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm"}, Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"x": {0}}}
	p := pod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}})
	ready, _, err := m.Prepare(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	dir := ready["v"]
	if read(t, dir+"/a")+read(t, dir+"/b")+read(t, dir+"/x") != "12\x00" {
		t.Error("wrong content")
	}
	if info, _ := os.Stat(dir + "/a"); info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v", info.Mode())
	}
	first, err := os.Readlink(dir + "/..data")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if same, _ := os.Readlink(dir + "/..data"); same != first {
		t.Error("unchanged content was written again")
	}
	o.cm = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm"}, Data: map[string]string{"a": "9", "c": "3"}}
	if _, err := m.Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if read(t, dir+"/a")+read(t, dir+"/c") != "93" {
		t.Error("wrong content after the update")
	}
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..2") && !strings.HasPrefix(e.Name(), "..1") {
			names = append(names, e.Name())
		}
	}
	if _, err := os.Stat(filepath.Join(dir, first)); err == nil {
		t.Error("the old content is still there")
	}
	if _, err := os.Lstat(dir + "/b"); err == nil {
		t.Errorf("a removed key is still there: %v", names)
	}
}

func TestItemsModesOptional(t *testing.T) {
	m, o, _, _ := setUp(t)
	o.secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"k": []byte("v")}}
	secret := func(change func(*corev1.SecretVolumeSource)) corev1.Volume {
		s := &corev1.SecretVolumeSource{SecretName: "s"}
		change(s)
		return corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Secret: s}}
	}
	p := pod(secret(func(s *corev1.SecretVolumeSource) {
		s.Items = []corev1.KeyToPath{{Key: "k", Path: "deep/er", Mode: ptr.To[int32](0o400)}}
	}))
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To[int64](1234)}
	ready, _, err := m.Prepare(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(ready["v"] + "/deep/er")
	if err != nil || info.Mode().Perm() != 0o440 {
		t.Errorf("file %v %v, want mode 0440 for the pod's group", info, err)
	}
	if _, _, err := m.Prepare(t.Context(), pod(secret(func(s *corev1.SecretVolumeSource) { s.Items = []corev1.KeyToPath{{Key: "none", Path: "x"}} }))); err == nil ||
		!strings.Contains(err.Error(), `MountVolume.SetUp failed for volume "v" : references non-existent secret key: none`) {
		t.Errorf("error %v", err)
	}
	gone := secret(func(s *corev1.SecretVolumeSource) { s.SecretName, s.Optional = "gone", ptr.To(true) })
	if _, _, err := m.Prepare(t.Context(), pod(gone)); err != nil {
		t.Errorf("an optional secret is missing: %v", err)
	}
}

func TestProjectedTokenAndDownward(t *testing.T) {
	m, _, i, clk := setUp(t)
	p := pod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "aud", ExpirationSeconds: ptr.To[int64](1000)}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu"}},
		}}},
	}}}})
	ready, refresh, err := m.Prepare(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, ready["v"]+"/token"); got != "sa+" {
		t.Errorf("token %q", got)
	}
	if i.last.Spec.BoundObjectRef.UID != "u" || i.last.Spec.Audiences[0] != "aud" {
		t.Errorf("request %+v", i.last.Spec)
	}
	if want := clk.Now().Add(800 * time.Second); !refresh.Equal(want) {
		t.Errorf("refreshed at %v, want %v", refresh, want)
	}
	if got := read(t, ready["v"]+"/labels") + read(t, ready["v"]+"/cpu"); got != "a=\"1\"\nb=\"2\"2" {
		t.Errorf("downward API %q", got)
	}
	clk.Step(799 * time.Second)
	if _, err := m.Update(t.Context(), p); err != nil || i.issued != 1 {
		t.Errorf("%d tokens, %v", i.issued, err)
	}
	clk.Step(2 * time.Second)
	if _, err := m.Update(t.Context(), p); err != nil || read(t, ready["v"]+"/token") != "sa++" {
		t.Errorf("the token was not replaced: %v", err)
	}
}

func TestEmptyDirOnTmpfs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	m, _, _, _ := setUp(t)
	size := resource.MustParse("64Ki")
	p := pod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}})
	ready, _, err := m.Prepare(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ready["v"]+"/f", make([]byte, 128<<10), 0o600); err == nil {
		t.Error("more than the size limit could be written")
	}
	if _, _, err := m.Prepare(t.Context(), p); err != nil {
		t.Errorf("preparing again: %v", err)
	}
	if mounted, _ := isMountPoint(ready["v"]); !mounted {
		t.Error("not mounted")
	}
	if err := m.Cleanup("u"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ready["v"]); err == nil {
		t.Error("still there after the clean-up")
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind corev1.HostPathType
		path string
		ok   bool
	}{
		{corev1.HostPathUnset, "/nowhere", true}, {corev1.HostPathDirectory, dir, true}, {corev1.HostPathDirectory, file, false},
		{corev1.HostPathDirectory, dir + "/none", false}, {corev1.HostPathFile, file, true}, {corev1.HostPathFile, dir, false},
		{corev1.HostPathDirectoryOrCreate, dir + "/new", true}, {corev1.HostPathFileOrCreate, dir + "/newf", true},
		{corev1.HostPathDirectoryOrCreate, file, false}, {corev1.HostPathCharDev, "/dev/null", true}, {corev1.HostPathBlockDev, "/dev/null", false},
		{corev1.HostPathSocket, file, false}, {"Odd", file, false},
	} {
		_, err := hostPath(&corev1.HostPathVolumeSource{Path: tc.path, Type: &tc.kind})
		if (err == nil) != tc.ok {
			t.Errorf("%s as %q: %v", tc.path, tc.kind, err)
		}
	}
	if info, err := os.Stat(dir + "/new"); err != nil || info.Mode().Perm() != fs.FileMode(0o755) {
		t.Errorf("made %v, %v", info, err)
	}
}
