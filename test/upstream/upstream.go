// Package upstream runs upstream's API server on an etcd, both with their defaults,
// RBAC as the authorizer and the API groups that knarr serves, for tests and benchmarks that hold knarr against it.
// "make upstream" builds both programs from their Go modules.
package upstream

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"knarr.dev/knarr/test/ports"
)

// Server is a running API server with its etcd.
type Server struct {
	// Config is an administrator's access. The server is on loopback and of our own
	// making: its self-signed certificate is not checked.
	Config *rest.Config
	// Procs are etcd and the API server.
	Procs []*exec.Cmd
	dir   string
}

const token = "administrator"

// Start runs the programs kube-apiserver and etcd of the folder bin and waits until
// they are ready, a minute at most.
func Start(ctx context.Context, bin string) (s *Server, err error) {
	s = &Server{}
	if s.dir, err = os.MkdirTemp("/var/tmp", "knarr-upstream-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Stop()
		}
	}()
	ports, err := FreePorts(3)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.in("tokens.csv"), []byte(token+",admin,admin,system:masters\n"), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", s.in("sa.key")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make a key: %w: %s", err, out)
	}
	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	if err := s.launch(ctx, filepath.Join(bin, "etcd"), "--data-dir", s.in("etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", ports[1])); err != nil {
		return nil, err
	}
	if err := s.launch(ctx, filepath.Join(bin, "kube-apiserver"), "--etcd-servers="+etcd, "--cert-dir="+s.in("certs"), "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", ports[2]), "--token-auth-file="+s.in("tokens.csv"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-signing-key-file="+s.in("sa.key"),
		"--service-account-key-file="+s.in("sa.key"), "--allow-privileged=true",
		"--runtime-config=storagemigration.k8s.io/v1beta1=true", "--feature-gates=StorageVersionMigrator=true"); err != nil {
		return nil, err
	}
	s.Config = &rest.Config{Host: fmt.Sprintf("https://127.0.0.1:%d", ports[2]), BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	return s, s.ready(ctx)
}

// Stop ends the programs and removes their state.
func (s *Server) Stop() {
	for i := len(s.Procs) - 1; i >= 0; i-- {
		_ = s.Procs[i].Process.Signal(syscall.SIGTERM) // it may have ended already
		_ = s.Procs[i].Wait()
	}
	os.RemoveAll(s.dir)
}

func (s *Server) in(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) launch(ctx context.Context, program string, args ...string) error {
	log, err := os.Create(s.in(filepath.Base(program) + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.CommandContext(ctx, program, args...)
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return fmt.Errorf("%s: %w: make upstream builds it", program, err)
	}
	s.Procs = append(s.Procs, c)
	return nil
}

func (s *Server) ready(ctx context.Context) error {
	client, err := rest.HTTPClientFor(s.Config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Config.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b, err := os.ReadFile(s.in("kube-apiserver.log"))
			return fmt.Errorf("upstream's API server is not ready after a minute (log: %v):\n%s", err, b[max(0, len(b)-3000):])
		}
	}
}

// FreePorts finds TCP ports that nobody listens on.
func FreePorts(n int) (out []int, err error) {
	for range n {
		p, err := ports.Free()
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
