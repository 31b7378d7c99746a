// Package logs reads container log files as runtimes write them: one line
//
//	2016-10-06T00:17:09.669794202Z stdout F the text
//
// for each write, tagged F for a full line or P for a part of a longer one.
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// Entry is one line of a log file.
type Entry struct {
	Time    time.Time
	Stream  string // stdout or stderr
	Partial bool   // the line goes on in the next entry of the stream
	Text    []byte // without the line's end, unless the line is full
}

var errFormat = errors.New("not a container log line")

// Parse reads one line, with or without its line feed. Text aliases line.
func Parse(line []byte) (Entry, error) {
	var e Entry
	rest := bytes.TrimSuffix(line, []byte{'\n'})
	stamp, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return e, errFormat
	}
	var err error
	if e.Time, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return e, fmt.Errorf("%w: %w", errFormat, err)
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if e.Stream = string(stream); !ok || e.Stream != "stdout" && e.Stream != "stderr" {
		return e, errFormat
	}
	tags, text, _ := bytes.Cut(rest, []byte{' '})
	// Tags are separated by colons; the first says whether the line is whole.
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	switch string(tag) {
	case "P":
		e.Partial = true
	case "F":
	default:
		return e, errFormat
	}
	e.Text = text
	return e, nil
}
