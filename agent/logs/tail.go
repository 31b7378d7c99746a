package logs

import (
	"bytes"
	"io"
	"os"
)

// tailBlock is how much is read at a time from the end of a file.
const tailBlock = 4096

// TailText returns the last lines of a log file as the container wrote them, at
// most so many bytes. An unreadable file yields "".
func TailText(path string, lines, limit int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	off, err := tailOffset(f, int64(lines))
	if err != nil {
		return ""
	}
	data, err := io.ReadAll(io.NewSectionReader(f, off, 1<<20))
	if err != nil {
		return ""
	}
	var out bytes.Buffer
	for line := range bytes.Lines(data) {
		if e, err := Parse(line); err == nil {
			out.Write(e.Text)
			if !e.Partial {
				out.WriteByte('\n')
			}
		}
	}
	b := out.Bytes()
	if len(b) > limit {
		b = b[len(b)-limit:]
	}
	return string(b)
}

// tailOffset finds where the last n lines of a file begin.
func tailOffset(f *os.File, n int64) (int64, error) {
	off, _, err := tailCount(f, n)
	return off, err
}

// tailCount is tailOffset that also tells how many lines, up to n, there are.
func tailCount(f *os.File, n int64) (offset, found int64, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	if n <= 0 {
		return end, 0, nil
	}
	buf := make([]byte, tailBlock)
	for pos := end; pos > 0; {
		size := min(pos, tailBlock)
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || pos+i == end-1 {
				continue
			}
			if found++; found == n {
				return pos + i + 1, found, nil
			}
		}
	}
	if end > 0 {
		found++ // the first line has no line feed before it
	}
	return 0, found, nil
}
