package dra

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"

	"knarr.dev/knarr/agent/plugins"
)

// older is the version before v1; its messages are those of v1, on the wire, but for
// fields that it lacks.
const older = "v1beta1.DRAPlugin"

// services are those that are spoken, by the name in a plugin's list of versions, the
// best first.
var services = [...]struct{ version, path string }{
	{draapi.DRAPluginService, "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/"},
	{older, "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/"},
}

// drivers are the plugins that are registered. The zero value is ready.
type drivers struct {
	mu   sync.Mutex
	list map[string]driver
}

type driver struct {
	conn     *grpc.ClientConn
	endpoint string
	service  string
}

// Register implements plugins.Handler.
func (m *Manager) Register(_ context.Context, p plugins.Plugin) error {
	for _, s := range services {
		if !slices.Contains(p.Versions, s.version) {
			continue
		}
		conn, err := plugins.Dial(p.Endpoint)
		if err != nil {
			return err
		}
		m.drivers.put(p.Name, driver{conn: conn, endpoint: p.Endpoint, service: s.path})
		return nil
	}
	return fmt.Errorf("none of the driver's versions %v is supported: use %s or %s", p.Versions, services[0].version, older)
}

// Deregister implements plugins.Handler.
func (m *Manager) Deregister(p plugins.Plugin) {
	m.drivers.mu.Lock()
	defer m.drivers.mu.Unlock()
	// While a driver is replaced its successor may have come already.
	if d, ok := m.drivers.list[p.Name]; ok && d.endpoint == p.Endpoint {
		d.conn.Close()
		delete(m.drivers.list, p.Name)
	}
}

// Close lets go of all drivers.
func (m *Manager) Close() {
	m.drivers.mu.Lock()
	defer m.drivers.mu.Unlock()
	for name, d := range m.drivers.list {
		d.conn.Close()
		delete(m.drivers.list, name)
	}
}

func (d *drivers) put(name string, next driver) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.list == nil {
		d.list = map[string]driver{}
	}
	if old, ok := d.list[name]; ok {
		old.conn.Close()
	}
	d.list[name] = next
}

func (d *drivers) call(ctx context.Context, name, method string, in, out proto.Message) error {
	d.mu.Lock()
	to, ok := d.list[name]
	d.mu.Unlock()
	if !ok {
		return fmt.Errorf("DRA driver %s is not registered", name)
	}
	return to.conn.Invoke(ctx, to.service+method, in, out)
}
