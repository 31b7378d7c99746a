package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestVariablesFromFiles(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "good"), []byte("A='1'\n"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "bad"), []byte("A=1\n"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "large"), make([]byte, maxEnvFile+1), 0o600))
	must(os.Symlink("/etc/hostname", filepath.Join(dir, "out")))
	must(os.Symlink("good", filepath.Join(dir, "link")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	s := &starting{volumes: map[string]string{"v": dir, "cm": dir}, pod: &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}, {Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}}}}}}
	for _, tc := range []struct {
		volume, path, key string
		optional          bool
		want              string
		found             bool
		err               string
	}{
		{"v", "good", "A", false, "1", true, ""},
		{"v", "link", "A", false, "1", true, ""},
		{"v", "good", "B", true, "", false, ""},
		{"v", "good", "B", false, "", false, `environment variable key "B" not found in file "good"`},
		{"v", "none", "A", true, "", false, ""},
		{"v", "none", "A", false, "", false, "no such file"},
		{"v", "out", "A", false, "", false, "no such file"},
		{"v", "fifo", "A", true, "", false, "no regular file"},
		{"v", "large", "A", true, "", false, "larger than"},
		{"v", "bad", "A", true, "", false, "must be enclosed in single quotes"},
		{"cm", "good", "A", true, "", false, "must be an emptyDir"},
		{"other", "good", "A", true, "", false, "cannot find the volume"},
	} {
		v, found, err := s.fromFile(&corev1.FileKeySelector{VolumeName: tc.volume, Path: tc.path, Key: tc.key, Optional: ptr.To(tc.optional)})
		if v != tc.want || found != tc.found || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%+v: %q, %v, %v", tc, v, found, err)
		}
	}
}
