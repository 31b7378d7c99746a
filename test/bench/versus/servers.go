package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// server is a running API server.
type server struct {
	*options
	config *rest.Config
	client *kubernetes.Clientset
	procs  []*exec.Cmd
	node   string // knarr's node API, for profiles; empty: none
	stop   func()
}

func (s *server) connect(config *rest.Config) (err error) {
	config.QPS = -1
	s.config = config
	s.client, err = kubernetes.NewForConfig(config)
	return err
}

// startKnarr starts the real binary, with all of its parts.
func startKnarr(_ context.Context, o *options) (*server, error) {
	dir, err := os.MkdirTemp("/var/tmp", "knarr-versus-")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	s := &server{options: o, node: fmt.Sprintf("https://127.0.0.1:%d", ports[1])}
	place := []string{"--name", o.name, "--data-dir", dir + "/data", "--run-dir", dir + "/run", "--kubeconfig", dir + "/kubeconfig"}
	s.stop = func() {
		if out, err := exec.Command(o.knarr, append([]string{"down"}, place...)...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "knarr down: %v: %s\n", err, out)
		}
		for _, p := range s.procs {
			_ = p.Wait()
		}
		os.RemoveAll(dir)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := exec.Command(o.knarr, append(append([]string{"up"}, place...), "--listen", fmt.Sprintf("127.0.0.1:%d", ports[0]), "--node-listen", fmt.Sprintf("127.0.0.1:%d", ports[1]),
		"--pod-cidr", "10.197.0.0/16", "--service-cidr", "10.196.0.0/16", "--node-name", "versus")...)
	c.Env = append(os.Environ(), "KNARR_READY_FD=1")
	c.Stdout, c.Stderr, c.ExtraFiles = log, log, []*os.File{w}
	if err := c.Start(); err != nil {
		return nil, err
	}
	w.Close()
	s.procs = append(s.procs, c)
	if n, _ := r.Read(make([]byte, 16)); n == 0 {
		b, _ := os.ReadFile(log.Name())
		s.stop()
		return nil, fmt.Errorf("knarr did not start: %s", b)
	}
	config, err := clientcmd.BuildConfigFromFlags("", dir+"/kubeconfig")
	if err == nil {
		err = s.connect(config)
	}
	if err != nil {
		s.stop()
	}
	return s, err
}

// startUpstream starts upstream's kube-apiserver on an etcd, both with their
// defaults, RBAC as the authorizer.
func startUpstream(ctx context.Context, o *options) (s *server, err error) {
	dir, err := os.MkdirTemp("/var/tmp", "knarr-versus-")
	if err != nil {
		return nil, err
	}
	s = &server{options: o}
	s.stop = func() {
		for i := len(s.procs) - 1; i >= 0; i-- {
			_ = s.procs[i].Process.Signal(syscall.SIGTERM)
			_ = s.procs[i].Wait()
		}
		os.RemoveAll(dir)
	}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("tokens.csv"), []byte("versus,admin,admin,system:masters\n"), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", in("sa.key")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make a key: %w: %s", err, out)
	}
	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	if err := s.launch(ctx, in("etcd.log"), filepath.Join(o.bin, "etcd"), "--data-dir", in("etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", ports[1])); err != nil {
		return nil, err
	}
	if err := s.launch(ctx, in("apiserver.log"), filepath.Join(o.bin, "kube-apiserver"), "--etcd-servers="+etcd, "--cert-dir="+in("certs"), "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", ports[2]), "--token-auth-file="+in("tokens.csv"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-signing-key-file="+in("sa.key"), "--service-account-key-file="+in("sa.key")); err != nil {
		return nil, err
	}
	// On loopback and of our own making: its self-signed certificate need not be checked.
	if err := s.connect(&rest.Config{Host: fmt.Sprintf("https://127.0.0.1:%d", ports[2]), BearerToken: "versus", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}); err != nil {
		return nil, err
	}
	return s, s.ready(ctx, in("apiserver.log"))
}

func (s *server) launch(ctx context.Context, log, program string, args ...string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	c := exec.CommandContext(ctx, program, args...)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		return fmt.Errorf("%s: %w: make record builds it", program, err)
	}
	s.procs = append(s.procs, c)
	return nil
}

func (s *server) ready(ctx context.Context, log string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		var code int
		s.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&code)
		if code == http.StatusOK {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b, _ := os.ReadFile(log)
			return fmt.Errorf("upstream's API server is not ready after a minute:\n%s", b[max(0, len(b)-3000):])
		}
	}
}

// cpu is the user and system time of the server's processes.
func (s *server) cpu() (sum time.Duration, err error) {
	for _, p := range s.procs {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+2:])
		user, err1 := strconv.ParseInt(f[11], 10, 64)
		system, err2 := strconv.ParseInt(f[12], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return 0, err
		}
		sum += time.Duration(user+system) * 10 * time.Millisecond
	}
	return sum, nil
}

// rss is the proportional and the anonymous memory of the server's processes in MiB.
func (s *server) rss() (pss, anon int, err error) {
	for _, p := range s.procs {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.Process.Pid))
		if err != nil {
			return 0, 0, err
		}
		for l := range strings.SplitSeq(string(b), "\n") {
			var kb int
			if n, _ := fmt.Sscanf(l, "Pss: %d kB", &kb); n == 1 {
				pss += kb >> 10
			}
			if n, _ := fmt.Sscanf(l, "Anonymous: %d kB", &kb); n == 1 {
				anon += kb >> 10
			}
		}
	}
	return pss, anon, nil
}

func freePorts(n int) ([]int, error) {
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out, nil
}
