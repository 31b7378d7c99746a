package probe

import (
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
)

func TestGRPC(t *testing.T) {
	serve := func(register func(*grpc.Server)) int32 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		return int32(l.Addr().(*net.TCPAddr).Port)
	}
	h := grpchealth.NewServer()
	h.SetServingStatus("ill", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	healthy := serve(func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, h) })
	bare := serve(func(*grpc.Server) {})
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts nothing: nobody speaks gRPC there
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent := int32(l.Addr().(*net.TCPAddr).Port)
	for _, c := range []struct {
		name    string
		port    int32
		service string
		want    Result
		says    string
	}{
		{"serving", healthy, "", Success, "service healthy"},
		{"not serving", healthy, "ill", Failure, `responded with "NOT_SERVING"`},
		{"unknown service", healthy, "absent", Failure, "health rpc probe failed"},
		{"no health service", bare, "", Failure, "does not implement the grpc health protocol"},
		{"no answer", silent, "", Failure, "timeout: failed to connect service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			timeout := 5 * time.Second
			if c.port == silent {
				timeout = 50 * time.Millisecond
			}
			got, says := Run(t.Context(), nil, Target{IP: "127.0.0.1", Container: &corev1.Container{Name: "c"}},
				corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: c.port, Service: &c.service}}, timeout)
			if got != c.want || !strings.Contains(says, c.says) {
				t.Errorf("%v, %q; want %v, %q", got, says, c.want, c.says)
			}
		})
	}
}
