package images

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/critest"
)

// Every start of a container asks for an image that is there: it must cost little beside
// the question to the runtime.
func BenchmarkEnsurePresent(b *testing.B) {
	rt := critest.New()
	m, err := New(Config{CRI: rt.Client(b), Root: b.TempDir(), Clock: clocktesting.NewFakeClock(time.Unix(1_900_000_000, 0))})
	if err != nil {
		b.Fatal(err)
	}
	for name, secrets := range map[string][]*corev1.Secret{"node": nil, "secret": {secret("a", "s", "1", "alice", "secret")}} {
		r := Request{Image: "reg.example.com/" + name + ":1", Policy: corev1.PullIfNotPresent, Secrets: secrets, Event: func(string, string, string) {}}
		if _, err := m.Ensure(b.Context(), r); err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.Ensure(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/permitted", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !m.permitted(b.Context(), r, "sha256:"+r.Image) {
					b.Fatal("refused")
				}
			}
		})
	}
}

// A pull writes an intent and a record, which are on the disk before it counts.
func BenchmarkPull(b *testing.B) {
	rt := critest.New()
	m, err := New(Config{CRI: rt.Client(b), Root: b.TempDir(), Clock: clocktesting.NewFakeClock(time.Unix(1_900_000_000, 0))})
	if err != nil {
		b.Fatal(err)
	}
	r := Request{Image: "reg.example.com/x:1", Policy: corev1.PullAlways, Event: func(string, string, string) {}}
	for b.Loop() {
		if _, err := m.Ensure(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
}
