// Package plugins finds the plugins of a node: programs that put a socket into a
// folder and are asked there who they are. CSI drivers, drivers of dynamic resource
// allocation and device plugins come to a node in this way. The protocol is
// k8s.io/kubelet/pkg/apis/pluginregistration/v1.
//
//	folder ──inotify──> Run ──GetInfo──> plugin
//	                     │  └─NotifyRegistrationStatus
//	                     └──Register, Deregister──> the Handler of the plugin's type
package plugins

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/logs"
)

// Pauses between attempts to register a plugin, and the bound of each of its answers.
const (
	firstRetry = 500 * time.Millisecond
	maxRetry   = 2*time.Minute + 2*time.Second
	answerIn   = 10 * time.Second
)

// Plugin is a plugin that has said who it is.
type Plugin struct {
	Name     string
	Endpoint string // path of the socket on which it serves
	Versions []string
}

// Handler takes plugins of one type. Calls come one at a time.
type Handler interface {
	// Register takes a plugin up; its error is told to the plugin and it is tried
	// again.
	Register(ctx context.Context, p Plugin) error
	// Deregister lets a plugin go whose socket was removed.
	Deregister(p Plugin)
}

// Registry keeps the plugins of one folder.
type Registry struct {
	// Dir is made if it is not there; its folders are looked into as well.
	Dir string
	// Handlers by type of plugin, such as DRAPlugin.
	Handlers map[string]Handler
	Clock    clock.WithDelayedExecution
	Log      *slog.Logger

	known map[string]*socket
}

// socket is one that was found.
type socket struct {
	inode  uint64
	kind   string
	plugin *Plugin // nil: not registered
	delay  time.Duration
	retry  time.Time
}

// Run registers plugins as they come and go, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	if err := os.MkdirAll(r.Dir, 0o750); err != nil {
		return fmt.Errorf("make the folder of plugins: %w", err)
	}
	r.known = map[string]*socket{}
	var w logs.Watcher
	wake := make(chan struct{}, 1)
	watched := map[string]func(){}
	defer func() {
		for _, cancel := range watched {
			cancel()
		}
	}()
	for ctx.Err() == nil {
		// Folders are watched before they are read: nothing is missed.
		for _, dir := range folders(r.Dir) {
			if watched[dir] != nil {
				continue
			}
			changes, cancel, err := w.Watch(dir)
			if err != nil {
				r.Log.Warn("new plugins are found only when others change", "folder", dir, "error", err)
				continue
			}
			done, ended := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(ended)
				forward(changes, wake, done)
			}()
			watched[dir] = func() { close(done); <-ended; cancel() }
		}
		for dir, cancel := range watched {
			if _, err := os.Stat(dir); err != nil {
				cancel()
				delete(watched, dir)
			}
		}
		next := r.look(ctx)
		var timer <-chan time.Time
		stop := func() {}
		if !next.IsZero() {
			t := r.Clock.NewTimer(max(0, next.Sub(r.Clock.Now())))
			timer, stop = t.C(), func() { t.Stop() }
		}
		select {
		case <-wake:
		case <-timer:
		case <-ctx.Done():
		}
		stop()
	}
	return ctx.Err()
}

func forward(from <-chan struct{}, to chan<- struct{}, done <-chan struct{}) {
	for {
		select {
		case <-from:
			select {
			case to <- struct{}{}:
			default:
			}
		case <-done:
			return
		}
	}
}

// folders are dir and those within it.
func folders(dir string) []string {
	var out []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			out = append(out, path)
		}
		return nil // what vanishes is not there
	})
	return out
}

// look compares the sockets with those that are known; it returns when to look again
// whatever happens, zero: never.
func (r *Registry) look(ctx context.Context) (next time.Time) {
	found := map[string]uint64{}
	_ = filepath.WalkDir(r.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSocket == 0 || strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				found[path] = st.Ino
			}
		}
		return nil
	})
	for path, s := range r.known {
		if inode, there := found[path]; there && inode == s.inode {
			continue
		}
		delete(r.known, path)
		if s.plugin != nil {
			r.Log.Info("a plugin is gone", "plugin", s.plugin.Name, "type", s.kind)
			r.Handlers[s.kind].Deregister(*s.plugin)
		}
	}
	for path, inode := range found {
		s := r.known[path]
		if s == nil {
			s = &socket{inode: inode}
			r.known[path] = s
		}
		if s.plugin != nil {
			continue
		}
		if now := r.Clock.Now(); !now.Before(s.retry) {
			if err := r.register(ctx, path, s); err != nil && ctx.Err() == nil {
				s.delay = min(max(2*s.delay, firstRetry), maxRetry)
				s.retry = now.Add(s.delay)
				r.Log.Warn("a plugin could not be registered; it will be tried again", "socket", path, "next", s.retry, "error", err)
			}
		}
		if s.plugin == nil && (next.IsZero() || s.retry.Before(next)) {
			next = s.retry
		}
	}
	return next
}

// register asks a plugin who it is and hands it on.
func (r *Registry) register(ctx context.Context, path string, s *socket) error {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	conn, err := Dial(path)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := registerapi.NewRegistrationClient(conn)
	info, err := client.GetInfo(ctx, &registerapi.InfoRequest{})
	if err != nil {
		return fmt.Errorf("ask the plugin who it is: %w", err)
	}
	p := Plugin{Name: info.Name, Endpoint: info.Endpoint, Versions: info.SupportedVersions}
	if p.Endpoint == "" {
		p.Endpoint = path
	}
	h := r.Handlers[info.Type]
	if h == nil {
		err = fmt.Errorf("no handler registered for plugin type: %s at socket %s", info.Type, path)
	} else if info.Name == "" {
		err = fmt.Errorf("the plugin at socket %s has no name", path)
	} else {
		err = h.Register(ctx, p)
	}
	answer := &registerapi.RegistrationStatus{PluginRegistered: err == nil}
	if err != nil {
		answer.Error = err.Error()
	}
	_, told := client.NotifyRegistrationStatus(ctx, answer)
	if err != nil {
		return err
	}
	if told != nil {
		h.Deregister(p)
		return fmt.Errorf("tell the plugin that it is registered: %w", told)
	}
	s.kind, s.plugin = info.Type, &p
	r.Log.Info("a plugin is registered", "plugin", p.Name, "type", s.kind)
	return nil
}

// Dial prepares a connection to a plugin's socket; it is made at the first call.
func Dial(path string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(path, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("plugin socket %s: %w", path, err)
	}
	return conn, nil
}

// maxMessage is the largest message, in bytes, that a plugin may send.
const maxMessage = 16 << 20
