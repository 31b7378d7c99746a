package logs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const sample = `2026-01-01T00:00:01.5Z stdout F one
2026-01-01T00:00:02Z stderr F two
2026-01-01T00:00:03Z stdout P thr
2026-01-01T00:00:03Z stdout F ee
garbage
2026-01-01T00:00:04Z stdout F four
`

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path+".20260101-000000.000", "2026-01-01T00:00:00Z stdout F zero\n")
	write(t, path, sample)
	for name, tc := range map[string]struct {
		o    Options
		want string
	}{
		"all":        {Options{Tail: -1}, "zero\none\ntwo\nthree\nfour\n"},
		"tail 0":     {Options{Tail: 0}, ""},
		"tail 1":     {Options{Tail: 1}, "four\n"},
		"tail older": {Options{Tail: 7}, "zero\none\ntwo\nthree\nfour\n"},
		"tail all":   {Options{Tail: 100}, "zero\none\ntwo\nthree\nfour\n"},
		"stderr":     {Options{Tail: -1, Stream: "stderr"}, "two\n"},
		"since":      {Options{Tail: -1, Since: time.Date(2026, 1, 1, 0, 0, 3, 0, time.UTC)}, "three\nfour\n"},
		"limit":      {Options{Tail: -1, Limit: 7}, "zero\non"},
		"timestamps": {Options{Tail: 4, Timestamps: true}, "2026-01-01T00:00:03Z three\n2026-01-01T00:00:04Z four\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Copy(t.Context(), Source{Path: path}, tc.o, &out, nil); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.want {
				t.Errorf("got %q, want %q", out.String(), tc.want)
			}
		})
	}
}

func TestMissingLogIsAnError(t *testing.T) {
	if err := Copy(t.Context(), Source{Path: filepath.Join(t.TempDir(), "0.log")}, Options{Tail: -1}, &bytes.Buffer{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
}

// gate is a writer that tells what arrived.
type gate struct {
	mu   sync.Mutex
	text string
	wake chan struct{}
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.text += string(p)
	select {
	case g.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (g *gate) until(t *testing.T, want string) {
	t.Helper()
	for {
		g.mu.Lock()
		ok := strings.HasSuffix(g.text, want)
		g.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-g.wake:
		case <-time.After(10 * time.Second):
			t.Fatalf("%q never arrived; have %q", want, g.text)
		}
	}
}

func TestFollowThroughRotationUntilTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, "2026-01-01T00:00:00Z stdout F a\n")
	var mu sync.Mutex
	ended, changed := false, make(chan struct{})
	src := Source{Path: path, Watcher: &Watcher{},
		Ended:   func() bool { mu.Lock(); defer mu.Unlock(); return ended },
		Changed: func() <-chan struct{} { mu.Lock(); defer mu.Unlock(); return changed }}
	out := &gate{wake: make(chan struct{}, 1)}
	done := make(chan error, 1)
	go func() { done <- Copy(t.Context(), src, Options{Follow: true, Tail: -1}, out, nil) }()
	out.until(t, "a\n")
	write(t, path, "2026-01-01T00:00:01Z stdout F b")
	write(t, path, "c\n")
	out.until(t, "bc\n")
	if err := os.Rename(path, path+".20260101-000000.000"); err != nil {
		t.Fatal(err)
	}
	write(t, path, "2026-01-01T00:00:02Z stdout F d\n")
	out.until(t, "d\n")
	write(t, path, "2026-01-01T00:00:03Z stdout F e\n")
	mu.Lock()
	ended = true
	close(changed)
	mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.text != "a\nbc\nd\ne\n" {
		t.Fatalf("got %q", out.text)
	}
	if src.Watcher.file != nil {
		t.Error("the inotify instance outlived its last watch")
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, "2026-01-01T00:00:00Z stdout F a\n")
	ctx, cancel := context.WithCancel(t.Context())
	out := &gate{wake: make(chan struct{}, 1)}
	done := make(chan error, 1)
	src := Source{Path: path, Watcher: &Watcher{}, Ended: func() bool { return false }, Changed: func() <-chan struct{} { return nil }}
	go func() { done <- Copy(ctx, src, Options{Follow: true, Tail: -1}, out, nil) }()
	out.until(t, "a\n")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
}

func TestTailText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, sample)
	if got := TailText(path, 3, 100); got != "ee\nfour\n" {
		t.Errorf("last lines %q", got)
	}
	if got := TailText(path, 80, 5); got != "four\n" {
		t.Errorf("limited %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for l := range strings.Lines(sample) {
		f.Add([]byte(l))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Parse(line)
		if err != nil {
			return
		}
		if e.Stream != "stdout" && e.Stream != "stderr" || e.Time.IsZero() && !bytes.HasPrefix(line, []byte("0001-")) || !bytes.Contains(line, e.Text) {
			t.Fatalf("%q parsed as %+v", line, e)
		}
	})
}
