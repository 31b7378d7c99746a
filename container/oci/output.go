package oci

import (
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	keptOutput = 1 << 10 // bytes of a hook's output that are kept: the last
	// lateOutput is how long the output of a hook that has ended is waited for, which
	// others that it started may hold open.
	lateOutput = 100 * time.Millisecond
)

// listener keeps the end of what is written to a pipe.
type listener struct {
	from *os.File
	kept []byte
	done chan struct{}
}

// listen returns the pipe's other end, too; it is handed back to end.
func listen() (l *listener, to *os.File, err error) {
	from, to, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	l = &listener{from: from, done: make(chan struct{})}
	go l.read()
	return l, to, nil
}

func (l *listener) read() {
	defer close(l.done)
	buf := make([]byte, 4096)
	for {
		n, err := l.from.Read(buf)
		l.kept = append(l.kept, buf[:n]...)
		l.kept = l.kept[max(0, len(l.kept)-keptOutput):]
		if err != nil {
			return
		}
	}
}

// end stops listening and returns what was kept.
func (l *listener) end(to *os.File) string {
	to.Close()
	_ = l.from.SetReadDeadline(time.Now().Add(lateOutput)) // pipes can have one
	<-l.done
	l.from.Close()
	return strings.TrimSpace(strings.ToValidUTF8(string(l.kept), "?"))
}
