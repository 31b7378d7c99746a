package log

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func fixed() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 60, time.UTC) }

func TestFormat(t *testing.T) {
	const at = "2026-01-02T03:04:05.000000060Z"
	long := strings.Repeat("x", MaxLine)
	for _, c := range []struct {
		name   string
		writes []string
		want   string
	}{
		{"a line", []string{"hello\n"}, at + " stdout F hello\n"},
		{"two at once", []string{"a\nb\n"}, at + " stdout F a\n" + at + " stdout F b\n"},
		{"one in parts", []string{"he", "llo", "\n"}, at + " stdout F hello\n"},
		{"empty", []string{"\n"}, at + " stdout F \n"},
		{"no end", []string{"tail"}, at + " stdout P tail\n"},
		{"exactly full", []string{long + "\n"}, at + " stdout F " + long + "\n"},
		{"too long", []string{long + "y\n"}, at + " stdout P " + long + "\n" + at + " stdout F y\n"},
		{"too long in parts", []string{long, "y", "\nz\n"}, at + " stdout P " + long + "\n" + at + " stdout F y\n" + at + " stdout F z\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sub", "log")
			w, err := Open(path, fixed)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			l := w.Stream(Stdout)
			for _, p := range c.writes {
				if _, err := l.Write([]byte(p)); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != c.want {
				t.Errorf("wrote %.100q (%v), not %.100q", got, err, c.want)
			}
		})
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Open(path, fixed)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	l := w.Stream(Stderr)
	write := func(s string) {
		if _, err := l.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	write("old\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("between\n")
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	write("new\n")
	was, _ := os.ReadFile(path + ".1")
	is, _ := os.ReadFile(path)
	if bytes.Count(was, []byte("\n")) != 2 || !strings.HasSuffix(string(is), "stderr F new\n") || bytes.Count(is, []byte("\n")) != 1 {
		t.Errorf("rotated %q, current %q", was, is)
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb"), 3)
	f.Add([]byte(strings.Repeat("x", MaxLine+5)), 7)
	f.Fuzz(func(t *testing.T, data []byte, chunk int) {
		if chunk <= 0 {
			chunk = 1
		}
		path := filepath.Join(t.TempDir(), "log")
		w, err := Open(path, fixed)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		l := w.Stream(Stdout)
		for rest := data; len(rest) > 0; {
			n := min(chunk, len(rest))
			l.Write(rest[:n])
			rest = rest[n:]
		}
		l.Flush()
		text, _ := os.ReadFile(path)
		var back []byte
		for line := range bytes.Lines(text) {
			e, err := Parse(bytes.TrimSuffix(line, []byte("\n")))
			if err != nil || len(e.Content) > MaxLine {
				t.Fatalf("%q: %v", line, err)
			}
			back = append(back, e.Content...)
			if !e.Partial {
				back = append(back, '\n')
			}
		}
		if !bytes.Equal(back, data) {
			t.Errorf("wrote %q, read %q", data, back)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05Z stdout F hello"))
	f.Add([]byte("x y z"))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Parse(line)
		if err == nil && !bytes.HasSuffix(line, e.Content) {
			t.Errorf("%q has content %q", line, e.Content)
		}
	})
}
