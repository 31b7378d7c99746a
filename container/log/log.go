// Package log writes the output of containers in the CRI's log format:
//
//	<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <content>
//
// F ends a line, P says that the line goes on in the next entry.
package log

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// MaxLine is the longest content of an entry; longer lines become several.
const MaxLine = 16 << 10

const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// Stream names one of a container's outputs.
type Stream string

// The two streams.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// Writer is a container's log. Its streams may write concurrently. A Writer
// without a path drops everything.
type Writer struct {
	path string
	now  func() time.Time

	mu   sync.Mutex
	file *os.File
	buf  []byte
}

// Open opens (or makes) the log at path for appending; now is the clock.
func Open(path string, now func() time.Time) (*Writer, error) {
	w := &Writer{path: path, now: now}
	if path == "" {
		return w, nil
	}
	return w, w.Reopen()
}

// Reopen opens the path anew, after somebody moved the old file away.
func (w *Writer) Reopen() error {
	if w.path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(w.path), 0o755); err != nil {
		return fmt.Errorf("making the folder of log %s: %w", w.path, err)
	}
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("opening log %s: %w", w.path, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.file
	w.file = f
	if old != nil {
		return old.Close()
	}
	return nil
}

// Close closes the file.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// Line splits one stream into entries. It is used by one goroutine.
type Line struct {
	w       *Writer
	stream  Stream
	pending []byte
}

// Stream returns the splitter of one of the log's streams.
func (w *Writer) Stream(s Stream) *Line { return &Line{w: w, stream: s} }

// Write takes bytes as they come. Whole lines are written at once; the rest
// waits for its end, or for MaxLine bytes.
func (l *Line) Write(p []byte) (int, error) {
	n := len(p)
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.w.buf = l.w.buf[:0]
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			l.pending = append(l.pending, p...)
			p = nil
		} else if len(l.pending) > 0 {
			l.pending = append(l.pending, p[:end]...)
			p = p[end+1:]
		}
		content := l.pending
		if end >= 0 && len(l.pending) == 0 {
			content, p = p[:end], p[end+1:]
		}
		for len(content) > MaxLine {
			l.w.append(l.stream, 'P', content[:MaxLine])
			content = content[MaxLine:]
		}
		if end >= 0 {
			l.w.append(l.stream, 'F', content)
			l.pending = l.pending[:0]
		} else {
			l.pending = append(l.pending[:0], content...)
		}
	}
	return n, l.w.flush()
}

// Flush writes what waits for the end of its line, at the end of the stream.
func (l *Line) Flush() error {
	if len(l.pending) == 0 {
		return nil
	}
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.w.buf = l.w.buf[:0]
	l.w.append(l.stream, 'P', l.pending)
	l.pending = nil
	return l.w.flush()
}

func (w *Writer) append(s Stream, tag byte, content []byte) {
	w.buf = w.now().UTC().AppendFormat(w.buf, timeFormat)
	w.buf = append(append(append(w.buf, ' '), s...), ' ', tag, ' ')
	w.buf = append(append(w.buf, content...), '\n')
}

func (w *Writer) flush() error {
	if w.file == nil || len(w.buf) == 0 {
		return nil
	}
	n, err := w.file.Write(w.buf)
	if err != nil && n > 0 {
		err = errors.Join(err, w.cut(int64(n)))
	}
	if cap(w.buf) > 64<<10 {
		w.buf = nil
	}
	if err != nil {
		return fmt.Errorf("writing log %s: %w", w.path, err)
	}
	return nil
}

// cut takes back the last n bytes, the beginning of an entry for which there was no room.
func (w *Writer) cut(n int64) error {
	end, err := w.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return w.file.Truncate(max(0, end-n))
}

// Entry is one line of a log file.
type Entry struct {
	Time    time.Time
	Stream  Stream
	Partial bool
	Content []byte
}

// ErrFormat is returned for a line that is no entry.
var ErrFormat = errors.New("not a line of a container log")

// Parse reads one line, without its newline.
func Parse(line []byte) (Entry, error) {
	var e Entry
	stamp, rest, ok1 := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tag, content, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || !ok3 {
		return e, ErrFormat
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return e, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	e.Time, e.Stream, e.Content = t, Stream(stream), content
	if e.Stream != Stdout && e.Stream != Stderr {
		return e, fmt.Errorf("%w: stream %q", ErrFormat, stream)
	}
	// Further tags may follow the first, separated by colons.
	first, _, _ := bytes.Cut(tag, []byte(":"))
	switch string(first) {
	case "F":
	case "P":
		e.Partial = true
	default:
		return e, fmt.Errorf("%w: tag %q", ErrFormat, tag)
	}
	return e, nil
}

var _ io.Writer = (*Line)(nil)
