package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/log"
	"knarr.dev/knarr/container/oci"
)

// output carries what a container writes to its log and to those attached, and
// what these write to it. Without a terminal there are two FIFOs; with one
// there is its master.
type output struct {
	log     *log.Writer
	out     *os.File // stdout, or the terminal's master
	err     *os.File
	in      *os.File // nil: no input; with a terminal a duplicate of its master
	tty     bool
	done    chan struct{} // closed when the output has ended
	readers sync.WaitGroup

	mu       sync.Mutex
	attached map[*attachment]struct{}
}

// attachment is one client that follows the output.
type attachment struct {
	out, err io.Writer
	failed   chan struct{}
	once     sync.Once
}

// fail lets the client go; its stream is closed by whoever serves it.
func (a *attachment) fail() { a.once.Do(func() { close(a.failed) }) }

// pipeSize gives a container room to write on while we are away.
const pipeSize = 256 << 10

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// openOutput makes a container's FIFOs and opens both of their ends.
func (s *Server) openOutput(c *container) (*output, oci.Stdio, error) {
	w, err := log.Open(c.LogPath, s.cfg.Now)
	if err != nil {
		return nil, oci.Stdio{}, err
	}
	o := &output{log: w, tty: c.TTY, done: make(chan struct{}), attached: map[*attachment]struct{}{}}
	var stdio oci.Stdio
	if c.TTY {
		return o, stdio, nil
	}
	fail := func(err error) (*output, oci.Stdio, error) {
		closeAll(stdio.In, stdio.Out, stdio.Err)
		o.close()
		return nil, oci.Stdio{}, err
	}
	dir := s.pipeDir(c.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fail(fmt.Errorf("making the folder of pipes: %w", err))
	}
	if o.out, stdio.Out, err = fifo(filepath.Join(dir, "out"), c.pod.users.Host(c.User.UID), false); err != nil {
		return fail(err)
	}
	if o.err, stdio.Err, err = fifo(filepath.Join(dir, "err"), c.pod.users.Host(c.User.UID), false); err != nil {
		return fail(err)
	}
	if c.config().GetStdin() {
		if o.in, stdio.In, err = fifo(filepath.Join(dir, "in"), c.pod.users.Host(c.User.UID), true); err != nil {
			return fail(err)
		}
	}
	return o, stdio, nil
}

// fifo makes a FIFO and opens our end and the container's. The container's
// end of an output is open for reading as well: even with nobody else there,
// writing never fails, and what was written stays until it is read.
func fifo(path string, uid uint32, input bool) (ours, theirs *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, nil, fmt.Errorf("making FIFO %s: %w", path, err)
	}
	// So that /dev/stdout can be opened anew by whoever the container runs as.
	if err := os.Chown(path, int(uid), -1); err != nil {
		return nil, nil, err
	}
	rd, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening FIFO %s: %w", path, err)
	}
	if input {
		wr, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			rd.Close()
			return nil, nil, fmt.Errorf("opening FIFO %s: %w", path, err)
		}
		return wr, rd, nil
	}
	wr, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		rd.Close()
		return nil, nil, fmt.Errorf("opening FIFO %s: %w", path, err)
	}
	// Best effort: beyond the user's share of pipe memory the kernel refuses.
	if raw, err := rd.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
	return rd, wr, nil
}

// attachConsole takes over a terminal's master.
func (o *output) attachConsole(master *os.File) { o.out, o.in = master, master }

// held lists the descriptors to be kept by the holder.
func (o *output) held() []*os.File {
	var files []*os.File
	for _, f := range []*os.File{o.out, o.err} {
		if f != nil {
			files = append(files, f)
		}
	}
	return files
}

// run copies until the output ends.
func (o *output) run(work *sync.WaitGroup, logger *slog.Logger) {
	for _, r := range []struct {
		from   *os.File
		stream log.Stream
	}{{o.out, log.Stdout}, {o.err, log.Stderr}} {
		if r.from == nil {
			continue
		}
		o.readers.Add(1)
		work.Go(func() {
			defer o.readers.Done()
			if err := o.copy(r.from, r.stream, logger); err != nil {
				logger.Error("reading a container's output", "error", err)
			}
		})
	}
	work.Go(func() { o.readers.Wait(); close(o.done) })
}

// stop ends run's copying without closing anything.
func (o *output) stop() {
	for _, f := range []*os.File{o.out, o.err} {
		if f != nil {
			// A file that cannot have a deadline has been closed already.
			_ = f.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// copy borrows a buffer only while there is something to read, so that a
// silent container holds none.
func (o *output) copy(from *os.File, stream log.Stream, logger *slog.Logger) error {
	line := o.log.Stream(stream)
	raw, err := from.SyscallConn()
	if err != nil {
		return err
	}
	lost := 0 // bytes that could not be written
	for {
		var n int
		var buf *[]byte
		var failure error
		err := raw.Read(func(fd uintptr) bool {
			if buf == nil {
				buf = copyBuffers.Get().(*[]byte)
			}
			n, failure = unix.Read(int(fd), *buf)
			if failure == unix.EAGAIN {
				copyBuffers.Put(buf)
				buf = nil
				return false
			}
			return failure != unix.EINTR
		})
		if n > 0 {
			if _, err := line.Write((*buf)[:n]); err != nil {
				// Who stopped reading would have the container wait forever.
				lost += n
				if lost == n {
					logger.Error("a container's output is lost: is the disk full?", "error", err)
				}
			} else if lost > 0 {
				logger.Warn("a container's output is kept again", "lost", lost)
				lost = 0
			}
			o.share(stream, (*buf)[:n])
		}
		if buf != nil {
			copyBuffers.Put(buf)
		}
		// A terminal whose last user has closed it reports EIO.
		if err != nil || n <= 0 || failure != nil {
			flush := line.Flush()
			if failure == unix.EIO || errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				failure, err = nil, nil
			}
			return errors.Join(failure, err, flush)
		}
	}
}

// share gives output to those attached; one that fails is let go. A slow client
// slows the container down, so it is not waited for under the lock.
func (o *output) share(stream log.Stream, p []byte) {
	for _, a := range o.clients() {
		w := a.out
		if stream == log.Stderr {
			w = a.err
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(p); err != nil {
			o.detach(a)
			a.fail()
		}
	}
}

func (o *output) clients() []*attachment {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.attached) == 0 {
		return nil
	}
	return slices.Collect(maps.Keys(o.attached))
}

func (o *output) attach(out, err io.Writer) *attachment {
	a := &attachment{out: out, err: err, failed: make(chan struct{})}
	o.mu.Lock()
	o.attached[a] = struct{}{}
	o.mu.Unlock()
	return a
}

func (o *output) detach(a *attachment) {
	o.mu.Lock()
	delete(o.attached, a)
	o.mu.Unlock()
}

// attachGrace is how long the clients of an ended container have to take the rest
// of its output.
const attachGrace = 5 * time.Second

// drain waits until all that was written has been read. It is called when the
// container's processes are dead, so the end is near.
func (o *output) drain(ctx context.Context) {
	patience := time.NewTimer(attachGrace)
	defer patience.Stop()
	select {
	case <-o.done:
	case <-ctx.Done():
	case <-patience.C:
		// A client that does not read must not keep the container from ending.
		for _, a := range o.clients() {
			o.detach(a)
			a.fail()
		}
		select {
		case <-o.done:
		case <-ctx.Done():
		}
	}
	o.close()
}

func (o *output) close() {
	closeAll(o.out, o.err)
	if o.in != o.out {
		closeAll(o.in)
	}
	_ = o.log.Close()
}
