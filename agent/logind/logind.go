// Package logind asks systemd-logind to wait for the node's pods before the machine
// goes down, and hears when it is about to:
// https://www.freedesktop.org/wiki/Software/systemd/inhibit.
package logind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

// Socket is where the system's bus listens.
const Socket = "/run/dbus/system_bus_socket"

const (
	service  = "org.freedesktop.login1"
	object   = "/org/freedesktop/login1"
	manager  = "org.freedesktop.login1.Manager"
	shutdown = "PrepareForShutdown"
	answerIn = 10 * time.Second
)

// Bus is a connection to the system's bus. Make one with Dial.
type Bus struct {
	conn   *dbus.Conn
	logind dbus.BusObject
}

// Dial connects to the bus at path and says hello.
func Dial(ctx context.Context, path string) (*Bus, error) {
	conn, err := dbus.Dial("unix:path=" + path)
	if err != nil {
		return nil, fmt.Errorf("system bus: %w", err)
	}
	// Neither of the two takes a context: its end closes the connection.
	hello, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	stop := context.AfterFunc(hello, func() { conn.Close() })
	defer stop()
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(fmt.Sprint(os.Getuid()))}); err != nil {
		return nil, errors.Join(fmt.Errorf("system bus: %w", err), conn.Close())
	}
	if err := conn.Hello(); err != nil {
		return nil, errors.Join(fmt.Errorf("system bus: %w", err), conn.Close())
	}
	return &Bus{conn: conn, logind: conn.Object(service, object)}, nil
}

// Close ends the connection.
func (b *Bus) Close() error { return b.conn.Close() }

func (b *Bus) call(ctx context.Context, method string, answer any, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	err := b.logind.CallWithContext(ctx, method, 0, args...).Store(answer)
	var refused dbus.Error
	if errors.As(err, &refused) {
		return fmt.Errorf("call %s on the system bus: %s: %w", method, refused.Name, err)
	}
	if err != nil {
		return fmt.Errorf("call %s on the system bus: %w", method, err)
	}
	return nil
}

// MaxDelay is how long logind waits for whoever inhibits.
func (b *Bus) MaxDelay(ctx context.Context) (time.Duration, error) {
	var v dbus.Variant
	if err := b.call(ctx, "org.freedesktop.DBus.Properties.Get", &v, manager, "InhibitDelayMaxUSec"); err != nil {
		return 0, err
	}
	us, ok := v.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("logind tells its longest delay as a %q", v.Signature())
	}
	return time.Duration(us) * time.Microsecond, nil
}

// Watch returns a channel that says true when the machine is about to go down, and
// false when that was called off. It is closed when the connection ends.
func (b *Bus) Watch(ctx context.Context) (<-chan bool, error) {
	signals := make(chan *dbus.Signal, 8)
	b.conn.Signal(signals)
	err := b.conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(manager), dbus.WithMatchMember(shutdown), dbus.WithMatchObjectPath(object))
	if err != nil {
		b.conn.RemoveSignal(signals)
		return nil, fmt.Errorf("listen on the system bus: %w", err)
	}
	out := make(chan bool, 8)
	go func() { // ends with the connection
		defer close(out)
		for s := range signals {
			if s.Name != manager+"."+shutdown || len(s.Body) != 1 {
				continue
			}
			if goes, ok := s.Body[0].(bool); ok {
				out <- goes
			}
		}
	}()
	return out, nil
}

// Inhibit has logind wait until what it returns is closed, or the longest delay has
// passed.
func (b *Bus) Inhibit(ctx context.Context) (io.Closer, error) {
	var fd dbus.UnixFD
	if err := b.call(ctx, manager+".Inhibit", &fd, "shutdown", "knarr", "pods of the node are ended in order", "delay"); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}
