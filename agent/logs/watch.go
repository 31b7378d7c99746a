package logs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Watcher tells readers that a directory has changed. All of them share one
// inotify instance, of which a machine has few. The zero value is ready; the
// instance is made with the first watch and closed with the last.
type Watcher struct {
	mu   sync.Mutex
	file *os.File
	fd   int
	dirs map[string]*watched
}

type watched struct {
	wd   int
	subs map[chan struct{}]bool
}

// Watch signals on the channel after changes in dir, at least once for any number
// of them since the last receive, until cancel is called.
func (w *Watcher) Watch(dir string) (changes <-chan struct{}, cancel func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil, nil, fmt.Errorf("watch %s: %w (raise fs.inotify.max_user_instances)", dir, err)
		}
		w.fd, w.file, w.dirs = fd, os.NewFile(uintptr(fd), "inotify"), map[string]*watched{}
		go w.read(w.file)
	}
	d := w.dirs[dir]
	if d == nil {
		wd, err := unix.InotifyAddWatch(w.fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM)
		if err != nil {
			w.closeIdle()
			return nil, nil, fmt.Errorf("watch %s: %w", dir, err)
		}
		d = &watched{wd: wd, subs: map[chan struct{}]bool{}}
		w.dirs[dir] = d
	}
	ch := make(chan struct{}, 1)
	d.subs[ch] = true
	return ch, func() { w.drop(dir, d, ch) }, nil
}

func (w *Watcher) drop(dir string, d *watched, ch chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(d.subs, ch)
	if len(d.subs) == 0 && w.dirs[dir] == d {
		// The directory may be gone already, and its watch with it.
		_, _ = unix.InotifyRmWatch(w.fd, uint32(d.wd))
		delete(w.dirs, dir)
	}
	w.closeIdle()
}

func (w *Watcher) closeIdle() {
	if len(w.dirs) == 0 && w.file != nil {
		w.file.Close()
		w.file = nil
	}
}

// read hands events on until the instance is closed.
func (w *Watcher) read(f *os.File) {
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return
		}
		w.mu.Lock()
		if w.file != f {
			w.mu.Unlock()
			return
		}
		for off := 0; off+unix.SizeofInotifyEvent <= n; {
			wd := int(int32(binary.NativeEndian.Uint32(buf[off:])))
			off += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[off+12:]))
			for _, d := range w.dirs {
				// -1 is an overflow: everybody looks again.
				if d.wd == wd || wd == -1 {
					for ch := range d.subs {
						select {
						case ch <- struct{}{}:
						default:
						}
					}
				}
			}
		}
		w.mu.Unlock()
	}
}
