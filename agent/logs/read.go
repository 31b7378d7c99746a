package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Options choose what of a log is shown, as pods/log of the API defines them.
type Options struct {
	Follow     bool
	Tail       int64 // last lines only; negative: all
	Limit      int64 // bytes at most; 0: no limit
	Since      time.Time
	Timestamps bool
	Stream     string // "stdout" or "stderr"; "": both
}

// Source is the log of one container.
type Source struct {
	Path string // the current file; rotated ones lie beside it as Path.<time>
	// Ended reports whether the container has ended; Changed is signalled (closed)
	// when that may have changed. Needed for Follow only.
	Ended   func() bool
	Changed func() <-chan struct{}
	Watcher *Watcher
}

// errLimit ends a copy that reached its limit of bytes.
var errLimit = errors.New("limit reached")

// Copy writes the log to w. When following, it returns once the container has
// ended and everything it wrote was copied, or ctx ends. flush, if set, is called
// whenever there is nothing more to copy for now.
func Copy(ctx context.Context, src Source, o Options, w io.Writer, flush func()) error {
	files, err := history(src.Path)
	if err != nil {
		return err
	}
	c := &copier{o: o, w: w, left: o.Limit, whole: true}
	start := 0
	var offset int64
	if o.Tail >= 0 {
		if start, offset, err = tailOf(files, o.Tail); err != nil {
			return err
		}
	}
	for i := start; i < len(files); i++ {
		off := int64(0)
		if i == start {
			off = offset
		}
		last := i == len(files)-1
		err := c.file(ctx, src, files[i], off, last && o.Follow, flush)
		if errors.Is(err, errLimit) {
			return nil
		}
		if err != nil && !(errors.Is(err, fs.ErrNotExist) && !last) {
			return err
		}
	}
	return nil
}

// history lists a log's files, the oldest first.
func history(path string) ([]string, error) {
	rotated, err := filepath.Glob(path + ".*")
	if err != nil {
		return nil, err
	}
	slices.Sort(rotated)
	return append(rotated, path), nil
}

// tailOf finds the file and offset at which the last n lines of all begin.
func tailOf(files []string, n int64) (int, int64, error) {
	for i := len(files) - 1; i >= 0; i-- {
		f, err := os.Open(files[i])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		off, found, err := tailCount(f, n)
		f.Close()
		if err != nil {
			return 0, 0, err
		}
		if found >= n || i == 0 {
			return i, off, nil
		}
		n -= found
	}
	return 0, 0, nil
}

// copier writes entries.
type copier struct {
	o     Options
	w     io.Writer
	left  int64
	whole bool // the last entry ended its line
}

// file copies one file from an offset, and when following goes on with what is
// appended to it and with the file that takes its place.
func (c *copier) file(ctx context.Context, src Source, path string, offset int64, follow bool, flush func()) error {
	var changes <-chan struct{}
	if follow {
		var cancel func()
		var err error
		if changes, cancel, err = src.Watcher.Watch(filepath.Dir(path)); err != nil {
			return err
		}
		defer cancel()
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer func() { f.Close() }()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	r := bufio.NewReaderSize(f, 64<<10)
	var pending []byte // a line that is not written to its end yet
	for {
		// What is asked before reading decides after it: an end seen now means
		// that the file is complete.
		var changed <-chan struct{}
		ended := true
		if follow {
			changed = src.Changed()
			ended = src.Ended()
		}
		for {
			part, err := r.ReadSlice('\n')
			pending = append(pending, part...)
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if err := c.line(pending); err != nil {
				return err
			}
			pending = pending[:0]
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if flush != nil {
			flush()
		}
		if next := replacement(f, path); follow && next != nil {
			// Rotated: what was written to the old file before is read above, but
			// more may have come since the last read.
			if rest, err := io.ReadAll(r); err == nil && len(rest) > 0 {
				r = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(rest), f), 64<<10)
				next.Close()
				continue
			}
			f.Close()
			f, pending = next, pending[:0]
			r.Reset(f)
			continue
		}
		if ended {
			return nil
		}
		select {
		case <-changes:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// replacement opens the file at path if it is another than f.
func replacement(f *os.File, path string) *os.File {
	a, err := f.Stat()
	if err != nil {
		return nil
	}
	b, err := os.Stat(path)
	if err != nil || os.SameFile(a, b) {
		return nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil
	}
	return next
}

// line writes one entry as the options demand. Lines that are no entries are
// passed over.
func (c *copier) line(line []byte) error {
	e, err := Parse(line)
	if err != nil || c.o.Stream != "" && e.Stream != c.o.Stream || e.Time.Before(c.o.Since) {
		return nil
	}
	out := make([]byte, 0, len(e.Text)+40)
	if c.o.Timestamps && c.whole {
		out = e.Time.AppendFormat(out, time.RFC3339Nano)
		out = append(out, ' ')
	}
	out = append(out, e.Text...)
	if !e.Partial {
		out = append(out, '\n')
	}
	c.whole = !e.Partial
	if c.o.Limit > 0 && int64(len(out)) >= c.left {
		_, err := c.w.Write(out[:c.left])
		return errors.Join(err, errLimit)
	}
	c.left -= int64(len(out))
	_, err = c.w.Write(out)
	return err
}
