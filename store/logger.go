package store

import (
	"fmt"
	"os"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// failures is the sink of etcd's log: it keeps silent but for what ends the
// process, which it tells in one line. Everything less comes back as an error of
// a call.
type failures struct {
	mu   sync.Mutex
	last string
}

func (f *failures) logger() *zap.Logger { return zap.New(f) }

// Last is the newest failure, in words.
func (f *failures) Last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// Enabled implements zapcore.Core.
func (f *failures) Enabled(l zapcore.Level) bool { return l >= zapcore.DPanicLevel }

// With implements zapcore.Core.
func (f *failures) With([]zapcore.Field) zapcore.Core { return f }

// Check implements zapcore.Core.
func (f *failures) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if f.Enabled(e.Level) {
		return ce.AddCore(e, f)
	}
	return ce
}

// Write implements zapcore.Core.
func (f *failures) Write(e zapcore.Entry, fields []zapcore.Field) error {
	text := e.Message
	enc := zapcore.NewMapObjectEncoder()
	for _, fl := range fields {
		fl.AddTo(enc)
	}
	if err, ok := enc.Fields["error"]; ok {
		text = fmt.Sprintf("%s: %v", text, err)
	}
	f.mu.Lock()
	f.last = text
	f.mu.Unlock()
	if e.Level == zapcore.FatalLevel { // the process ends when this returns
		fmt.Fprintf(os.Stderr, "knarr: store: %s\n", text)
	}
	return nil
}

// Sync implements zapcore.Core.
func (f *failures) Sync() error { return nil }
