// Package probe runs single probes of containers: commands, HTTP, TCP and gRPC.
// When and how often they run is the caller's business.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/cri"
)

// Result is a probe's verdict.
type Result int

// The results. Unknown means that the probe itself could not be run; it counts
// neither way.
const (
	Unknown Result = iota
	Success
	Failure
)

// maxOutput bounds what a probe reports, in bytes.
const maxOutput = 10 << 10

// Target is what is probed.
type Target struct {
	Container   *corev1.Container // resolves named ports
	ContainerID string
	IP          string // of the pod; the default host
}

// Run runs one probe within its timeout and returns its verdict and what it has
// to say.
func Run(ctx context.Context, c *cri.Client, t Target, h corev1.ProbeHandler, timeout time.Duration) (Result, string) {
	if timeout <= 0 {
		timeout = time.Second
	}
	switch {
	case h.Exec != nil:
		return exec(ctx, c, t.ContainerID, h.Exec.Command, timeout)
	case h.HTTPGet != nil:
		return HTTP(ctx, t, h.HTTPGet, timeout, "kube-probe/1.36")
	case h.TCPSocket != nil:
		port, err := Port(h.TCPSocket.Port, t.Container)
		if err != nil {
			return Unknown, err.Error()
		}
		return tcp(ctx, hostOr(h.TCPSocket.Host, t.IP), port, timeout)
	case h.GRPC != nil:
		return health(ctx, net.JoinHostPort(t.IP, strconv.Itoa(int(h.GRPC.Port))), h.GRPC.Service, timeout)
	}
	return Unknown, fmt.Sprintf("missing probe handler for container %s", t.Container.Name)
}

// Port resolves a port by number or by the container's name for it.
func Port(p intstr.IntOrString, c *corev1.Container) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, cp := range c.Ports {
		if cp.Name == p.StrVal {
			return int(cp.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("couldn't find port: %s in container %s", p.StrVal, c.Name)
}

func hostOr(host, ip string) string {
	if host != "" {
		return host
	}
	return ip
}

func exec(ctx context.Context, c *cri.Client, id string, cmd []string, timeout time.Duration) (Result, string) {
	resp, err := c.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64((timeout + time.Second - 1) / time.Second)})
	switch {
	case status.Code(err) == codes.DeadlineExceeded:
		return Failure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(cmd, " "), timeout)
	case err != nil:
		return Unknown, status.Convert(err).Message()
	}
	out := string(append(resp.Stdout, resp.Stderr...))
	if len(out) > maxOutput {
		out = out[:maxOutput]
	}
	if resp.ExitCode != 0 {
		return Failure, out
	}
	return Success, out
}

func tcp(ctx context.Context, host string, port int, timeout time.Duration) (Result, string) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return Failure, err.Error()
	}
	conn.Close()
	return Success, ""
}

func health(ctx context.Context, addr string, service *string, timeout time.Duration) (Result, string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("kube-probe/1.36"))
	if err != nil {
		return Failure, err.Error()
	}
	defer conn.Close()
	name := ""
	if service != nil {
		name = *service
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: name}, grpc.WaitForReady(true))
	switch code := status.Code(err); {
	case err == nil && resp.Status == grpc_health_v1.HealthCheckResponse_SERVING:
		return Success, "service healthy"
	case err == nil:
		return Failure, fmt.Sprintf("service unhealthy (responded with %q)", resp.Status)
	case code == codes.Unimplemented:
		return Failure, fmt.Sprintf("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message())
	case code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		return Failure, fmt.Sprintf("timeout: failed to connect service %q within %v: context deadline exceeded", addr, timeout)
	default:
		return Failure, fmt.Sprintf("error: health rpc probe failed: %+v", err)
	}
}
