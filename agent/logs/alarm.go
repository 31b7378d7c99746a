package logs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Alarm tells when files that were quiet are written to: once for each that was
// armed, so that a file which is written to all the time costs nothing more.
type Alarm struct {
	file *os.File
	fd   int
	c    chan struct{}
	done chan struct{}
}

// NewAlarm returns an alarm, to be closed by its owner.
func NewAlarm() (*Alarm, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch logs: %w (raise fs.inotify.max_user_instances)", err)
	}
	a := &Alarm{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), c: make(chan struct{}, 1), done: make(chan struct{})}
	go a.read()
	return a, nil
}

// C signals that a file was written to, once for any number since the last receive.
func (a *Alarm) C() <-chan struct{} { return a.c }

// Arm has the next write to the file signalled.
func (a *Alarm) Arm(path string) error {
	if _, err := unix.InotifyAddWatch(a.fd, path, unix.IN_MODIFY|unix.IN_ONESHOT); err != nil {
		return fmt.Errorf("watch log %s: %w", path, err)
	}
	return nil
}

// Close ends the alarm.
func (a *Alarm) Close() error {
	err := a.file.Close()
	<-a.done
	return err
}

func (a *Alarm) read() {
	defer close(a.done)
	buf := make([]byte, 4<<10)
	for {
		if _, err := a.file.Read(buf); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return
		}
		select {
		case a.c <- struct{}{}:
		default:
		}
	}
}
