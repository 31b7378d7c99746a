package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// LogConfig is what a Log is made of; the names are those of kube-apiserver's
// flags audit-log-….
type LogConfig struct {
	// Path of the file; "-" is the standard output.
	Path string `json:"path,omitempty"`
	// MaxSize in megabytes, after which a new file begins; 0: 100.
	MaxSize int `json:"maxSize,omitempty"`
	// MaxAge in days and MaxBackup in number of the old files that stay; 0: all.
	MaxAge    int `json:"maxAge,omitempty"`
	MaxBackup int `json:"maxBackup,omitempty"`
}

const defaultMaxSize = 100 // megabytes

// Log writes events to a file, one JSON line each.
type Log struct {
	cfg LogConfig
	now func() time.Time
	log *slog.Logger

	mu   sync.Mutex
	out  io.Writer
	file *os.File // nil: out is not ours
	size int64
}

// OpenLog opens the file, which only its owner may read.
func OpenLog(cfg LogConfig, now func() time.Time, log *slog.Logger) (*Log, error) {
	if cfg.MaxSize == 0 {
		cfg.MaxSize = defaultMaxSize
	}
	l := &Log{cfg: cfg, now: now, log: log, out: os.Stdout}
	if cfg.Path == "-" {
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return l, l.open()
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.cfg.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("audit log: %w", err)
	}
	l.file, l.out, l.size = f, f, info.Size()
	return nil
}

// Write implements Backend.
func (l *Log) Write(e *auditv1.Event) {
	b, err := json.Marshal(e)
	if err != nil {
		l.log.Error("audit event is lost", "id", e.AuditID, "error", err)
		return
	}
	b = append(b, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil && l.size > 0 && l.size+int64(len(b)) > int64(l.cfg.MaxSize)<<20 {
		if err := l.rotate(); err != nil {
			l.log.Error("audit log does not rotate: it goes on in the old file", "error", err)
		}
	}
	n, err := l.out.Write(b)
	l.size += int64(n)
	if err != nil {
		l.log.Error("audit event is lost", "id", e.AuditID, "error", err)
	}
}

// stampFormat is the time in the names of old files: audit-2006-01-02T15-04-05.000.log.
const stampFormat = "2006-01-02T15-04-05.000"

// rotate begins a new file; mu is held.
func (l *Log) rotate() error {
	prefix, ext := l.oldNames()
	name := prefix + l.now().UTC().Format(stampFormat) + ext
	for i := 1; ; i++ {
		if _, err := os.Lstat(name); err != nil {
			break
		}
		name = fmt.Sprintf("%s%s.%d%s", prefix, l.now().UTC().Format(stampFormat), i, ext)
	}
	if err := os.Rename(l.cfg.Path, name); err != nil {
		return err
	}
	old := l.file
	if err := l.open(); err != nil {
		return err
	}
	old.Close()
	return l.prune()
}

func (l *Log) oldNames() (prefix, ext string) {
	ext = filepath.Ext(l.cfg.Path)
	return strings.TrimSuffix(l.cfg.Path, ext) + "-", ext
}

// prune removes old files that are too many or too old.
func (l *Log) prune() error {
	prefix, ext := l.oldNames()
	files, err := filepath.Glob(prefix + "*" + ext)
	if err != nil {
		return err
	}
	slices.Sort(files) // the time in the name: oldest first
	for i, f := range files {
		stamp := strings.TrimPrefix(f, prefix)
		at, err := time.Parse(stampFormat, stamp[:min(len(stamp), len(stampFormat))])
		if err != nil {
			continue // not ours
		}
		tooMany := l.cfg.MaxBackup > 0 && i < len(files)-l.cfg.MaxBackup
		tooOld := l.cfg.MaxAge > 0 && l.now().Sub(at) > time.Duration(l.cfg.MaxAge)*24*time.Hour
		if tooMany || tooOld {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
