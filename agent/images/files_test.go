package images

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

// Whatever lies where a record should be, the image it is of was pulled for a pod.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2026-01-02T03:04:05Z","imageRef":"sha256:1","credentialMapping":{"busybox":{"kubernetesSecrets":[{"uid":"1","namespace":"a","name":"b","credentialHash":"c"}]}}}`))
	f.Add([]byte(`{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1alpha1","imageRef":"sha256:2"}`))
	f.Add([]byte(`{"credentialMapping":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		root := t.TempDir()
		for dir, key := range map[string]string{pulledDir: "sha256:1", pullingDir: "busybox:1"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, dir, fileName(key)), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r, err := openRecords(root, clocktesting.NewFakePassiveClock(time.Unix(1_900_000_000, 0)), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, ours := r.known("sha256:1", "other:1"); !ours {
			t.Error("the record's image counts as brought by somebody else")
		}
		if _, ours := r.known("sha256:other", "busybox:1"); !ours {
			t.Error("the intent's image counts as brought by somebody else")
		}
		if rec, ours := r.known("sha256:other", "other:1"); rec != nil || ours {
			t.Error("another image counts as pulled for a pod")
		}
	})
}
