// Package dratest is a driver of dynamic resource allocation for tests.
package dratest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// T is what of testing.TB is needed.
type T interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
}

// Driver prepares every claim with the devices that a test chooses. Its fields are
// set before Start.
type Driver struct {
	draapi.UnimplementedDRAPluginServer
	registerapi.UnimplementedRegistrationServer
	Name string
	// Versions that it registers with; nil: v1.
	Versions []string
	// Devices are those of a claim, by name.
	Devices func(claim string) []*draapi.Device
	// Fail, if set, is asked before each call, by its name.
	Fail func(method string) error

	mu       sync.Mutex
	prepared []string // names of claims
	calls    []string
	endpoint string
	changed  chan struct{}
}

// Start serves the driver and puts its registration into a registry's folder.
func (d *Driver) Start(t T, registry string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dra")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d.endpoint = filepath.Join(dir, "dra.sock")
	serve(t, d.endpoint, func(s *grpc.Server) {
		draapi.RegisterDRAPluginServer(s, d)
		old := draapi.DRAPlugin_ServiceDesc
		old.ServiceName = "k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin"
		s.RegisterService(&old, d)
	})
	if registry != "" {
		serve(t, filepath.Join(registry, d.Name+"-reg.sock"), func(s *grpc.Server) { registerapi.RegisterRegistrationServer(s, d) })
	}
}

// Endpoint is where the driver serves.
func (d *Driver) Endpoint() string { return d.endpoint }

func serve(t T, path string, register func(*grpc.Server)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s, done := grpc.NewServer(), make(chan struct{})
	register(s)
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
}

// Prepared lists the claims that are prepared.
func (d *Driver) Prepared() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.prepared)
}

// Calls lists what was asked: the method and the claim.
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// Wait blocks until ok holds of the prepared claims.
func (d *Driver) Wait(ctx context.Context, ok func(prepared []string) bool) error {
	for {
		d.mu.Lock()
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
		ch, now := d.changed, slices.Clone(d.prepared)
		d.mu.Unlock()
		if ok(now) {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *Driver) call(method, claim string) error {
	d.mu.Lock()
	d.calls = append(d.calls, method+" "+claim)
	d.mu.Unlock()
	if d.Fail != nil {
		return d.Fail(method)
	}
	return nil
}

func (d *Driver) now(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// GetInfo implements the registration service.
func (d *Driver) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	v := d.Versions
	if v == nil {
		v = []string{draapi.DRAPluginService}
	}
	return &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: d.Name, Endpoint: d.endpoint, SupportedVersions: v}, nil
}

// NotifyRegistrationStatus implements the registration service.
func (d *Driver) NotifyRegistrationStatus(context.Context, *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	return &registerapi.RegistrationStatusResponse{}, nil
}

// NodePrepareResources implements the driver's service.
func (d *Driver) NodePrepareResources(_ context.Context, req *draapi.NodePrepareResourcesRequest) (*draapi.NodePrepareResourcesResponse, error) {
	resp := &draapi.NodePrepareResourcesResponse{Claims: map[string]*draapi.NodePrepareResourceResponse{}}
	for _, c := range req.Claims {
		r := &draapi.NodePrepareResourceResponse{}
		if err := d.call("NodePrepareResources", c.Name); err != nil {
			r.Error = err.Error()
		} else {
			r.Devices = d.Devices(c.Name)
			d.now(func() {
				if !slices.Contains(d.prepared, c.Name) {
					d.prepared = append(d.prepared, c.Name)
				}
			})
		}
		resp.Claims[c.Uid] = r
	}
	return resp, nil
}

// NodeUnprepareResources implements the driver's service.
func (d *Driver) NodeUnprepareResources(_ context.Context, req *draapi.NodeUnprepareResourcesRequest) (*draapi.NodeUnprepareResourcesResponse, error) {
	resp := &draapi.NodeUnprepareResourcesResponse{Claims: map[string]*draapi.NodeUnprepareResourceResponse{}}
	for _, c := range req.Claims {
		r := &draapi.NodeUnprepareResourceResponse{}
		if err := d.call("NodeUnprepareResources", c.Name); err != nil {
			r.Error = err.Error()
		} else {
			d.now(func() { d.prepared = slices.DeleteFunc(d.prepared, func(n string) bool { return n == c.Name }) })
		}
		resp.Claims[c.Uid] = r
	}
	return resp, nil
}
