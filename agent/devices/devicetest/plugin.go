// Package devicetest is a device plugin for tests.
package devicetest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// T is what of testing.TB is needed.
type T interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
}

// Plugin announces devices that tests choose. Its fields are set before Start.
type Plugin struct {
	pluginapi.UnimplementedDevicePluginServer
	Resource string
	Options  *pluginapi.DevicePluginOptions
	// Prefer, if set, answers GetPreferredAllocation.
	Prefer func(available, must []string, n int) []string
	// Answer, if set, answers Allocate for one container.
	Answer func(ids []string) *pluginapi.ContainerAllocateResponse
	// Fail, if set, is asked before each call, by its name.
	Fail func(method string) error

	mu      sync.Mutex
	list    []*pluginapi.Device
	changed chan struct{}
	calls   []string
	server  *grpc.Server
	done    chan struct{}
}

// Device describes a healthy device on NUMA nodes.
func Device(id string, nodes ...int64) *pluginapi.Device {
	d := &pluginapi.Device{ID: id, Health: pluginapi.Healthy}
	if len(nodes) > 0 {
		d.Topology = &pluginapi.TopologyInfo{}
		for _, n := range nodes {
			d.Topology.Nodes = append(d.Topology.Nodes, &pluginapi.NUMANode{ID: n})
		}
	}
	return d
}

// Set replaces the plugin's devices.
func (p *Plugin) Set(list ...*pluginapi.Device) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = list
	if p.changed != nil {
		close(p.changed)
	}
	p.changed = make(chan struct{})
}

// Calls lists what was asked of the plugin: the method and the devices.
func (p *Plugin) Calls() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.calls...)
}

// Start serves the plugin in dir; Register announces it.
func (p *Plugin) Start(t T, dir string) {
	t.Helper()
	path := filepath.Join(dir, p.socket())
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server, done := grpc.NewServer(), make(chan struct{})
	p.server, p.done = server, done
	pluginapi.RegisterDevicePluginServer(server, p)
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
}

func (p *Plugin) socket() string { return strings.ReplaceAll(p.Resource, "/", "_") + ".sock" }

// Stop ends the plugin as its death would.
func (p *Plugin) Stop() { p.server.Stop(); <-p.done }

// Register announces the plugin to the agent that serves in dir.
func (p *Plugin) Register(ctx context.Context, dir string) error {
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = pluginapi.NewRegistrationClient(conn).Register(ctx, &pluginapi.RegisterRequest{
		Version: pluginapi.Version, Endpoint: p.socket(), ResourceName: p.Resource, Options: p.Options}, grpc.WaitForReady(true))
	return err
}

func (p *Plugin) call(method string, ids ...string) error {
	p.mu.Lock()
	p.calls = append(p.calls, strings.TrimSpace(method+" "+strings.Join(ids, ",")))
	p.mu.Unlock()
	if p.Fail != nil {
		return p.Fail(method)
	}
	return nil
}

// GetDevicePluginOptions implements the plugin's service.
func (p *Plugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return p.Options, nil
}

// ListAndWatch implements the plugin's service.
func (p *Plugin) ListAndWatch(_ *pluginapi.Empty, s grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	for {
		p.mu.Lock()
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		list, changed := p.list, p.changed
		p.mu.Unlock()
		if err := s.Send(&pluginapi.ListAndWatchResponse{Devices: list}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

// GetPreferredAllocation implements the plugin's service.
func (p *Plugin) GetPreferredAllocation(_ context.Context, req *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	r := req.ContainerRequests[0]
	if err := p.call("GetPreferredAllocation"); err != nil {
		return nil, err
	}
	return &pluginapi.PreferredAllocationResponse{ContainerResponses: []*pluginapi.ContainerPreferredAllocationResponse{
		{DeviceIDs: p.Prefer(r.AvailableDeviceIDs, r.MustIncludeDeviceIDs, int(r.AllocationSize))}}}, nil
}

// Allocate implements the plugin's service.
func (p *Plugin) Allocate(_ context.Context, req *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	ids := req.ContainerRequests[0].DevicesIds
	if err := p.call("Allocate", ids...); err != nil {
		return nil, err
	}
	r := &pluginapi.ContainerAllocateResponse{}
	if p.Answer != nil {
		r = p.Answer(ids)
	}
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{r}}, nil
}

// PreStartContainer implements the plugin's service.
func (p *Plugin) PreStartContainer(_ context.Context, req *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	return &pluginapi.PreStartContainerResponse{}, p.call("PreStartContainer", req.DevicesIds...)
}
