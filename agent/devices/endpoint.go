package devices

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"knarr.dev/knarr/agent/plugins"
)

// answerIn bounds a plugin's answers; preparing a device for a container may take
// that long.
const answerIn = 30 * time.Second

// endpoint is a connection to a plugin.
type endpoint struct {
	conn    *grpc.ClientConn
	client  pluginapi.DevicePluginClient
	options *pluginapi.DevicePluginOptions
}

func dial(path string, options *pluginapi.DevicePluginOptions) (*endpoint, error) {
	conn, err := plugins.Dial(path)
	if err != nil {
		return nil, err
	}
	return &endpoint{conn: conn, client: pluginapi.NewDevicePluginClient(conn), options: options}, nil
}

// close ends what follows the plugin.
func (e *endpoint) close() { e.conn.Close() }

// follow passes on what the plugin has until it ends or ctx does.
func (e *endpoint) follow(ctx context.Context, listed func([]*pluginapi.Device), lost func(error)) {
	defer e.close()
	stream, err := e.client.ListAndWatch(ctx, &pluginapi.Empty{}, grpc.WaitForReady(true))
	for err == nil {
		var r *pluginapi.ListAndWatchResponse
		if r, err = stream.Recv(); err == nil {
			listed(r.Devices)
		}
	}
	if ctx.Err() == nil {
		lost(err)
	}
}

// Run serves the plugins until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	defer m.wg.Wait()
	m.mu.Lock()
	m.ctx = ctx
	for _, k := range m.resources {
		// Each is announced until it is certain that its plugin does not come back.
		m.cfg.Clock.AfterFunc(goneAfter-m.cfg.Clock.Since(k.gone), func() { m.cfg.Changed(nil) })
	}
	m.mu.Unlock()
	// Plugins register anew when they see the socket being made.
	err := plugins.Serve(ctx, filepath.Join(m.cfg.Dir, "kubelet.sock"), func(s *grpc.Server) { pluginapi.RegisterRegistrationServer(s, registration{m: m}) })
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.Error("device plugins cannot register", "error", err)
		<-ctx.Done()
	}
	m.mu.Lock()
	for _, k := range m.resources {
		if k.plugin != nil {
			k.plugin.close()
		}
	}
	m.mu.Unlock()
	return ctx.Err()
}

// registration is the service that plugins call.
type registration struct {
	pluginapi.UnimplementedRegistrationServer
	m *Manager
}

// Register implements the registration service.
func (r registration) Register(_ context.Context, req *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	if !slices.Contains(pluginapi.SupportedVersions[:], req.Version) {
		return nil, status.Errorf(codes.InvalidArgument, "version %q of the device plugin API is not supported: use one of %v", req.Version, pluginapi.SupportedVersions)
	}
	if req.Endpoint == "" || strings.Contains(req.Endpoint, "/") {
		return nil, status.Errorf(codes.InvalidArgument, "the endpoint %q must be the name of a socket in %s", req.Endpoint, r.m.cfg.Dir)
	}
	if err := checkName(req.ResourceName); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	e, err := dial(filepath.Join(r.m.cfg.Dir, req.Endpoint), req.Options)
	if err != nil {
		return nil, err
	}
	if err := r.m.take(req.ResourceName, e); err != nil {
		return nil, err
	}
	r.m.cfg.Log.Info("a device plugin is registered", "resource", req.ResourceName, "endpoint", req.Endpoint)
	return &pluginapi.Empty{}, nil
}

// Register takes a plugin that was found by its socket: plugins.Handler.
func (m *Manager) Register(ctx context.Context, p plugins.Plugin) error {
	if !slices.ContainsFunc(p.Versions, func(v string) bool { return slices.Contains(pluginapi.SupportedVersions[:], v) }) {
		return fmt.Errorf("versions %v of the device plugin API are not supported: use one of %v", p.Versions, pluginapi.SupportedVersions)
	}
	if err := checkName(p.Name); err != nil {
		return err
	}
	e, err := dial(p.Endpoint, nil)
	if err != nil {
		return err
	}
	if e.options, err = e.client.GetDevicePluginOptions(ctx, &pluginapi.Empty{}); err != nil {
		e.close()
		return fmt.Errorf("ask the plugin for its options: %w", err)
	}
	return m.take(p.Name, e)
}

// Deregister lets go of a plugin whose socket was removed: plugins.Handler.
func (m *Manager) Deregister(p plugins.Plugin) {
	m.mu.Lock()
	var e *endpoint
	if k := m.resources[p.Name]; k != nil {
		e = k.plugin
	}
	m.mu.Unlock()
	if e != nil {
		e.close()
		m.lost(p.Name, e, errors.New("its socket was removed"))
	}
}
