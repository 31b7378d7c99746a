package linear

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"knarr.dev/knarr/test/ports"
)

// server is the real binary, which can be killed and started again.
type server struct {
	t      *testing.T
	binary string
	place  []string
	listen []string
	log    *os.File
	dir    string
	proc   *exec.Cmd
}

func newServer(t *testing.T) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: knarr makes namespaces, mounts and control groups")
	}
	if out, err := exec.Command("make", "-s", "-C", "../..", "build").CombinedOutput(); err != nil && os.Getenv("KNARR_BINARY") == "" {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	binary := os.Getenv("KNARR_BINARY")
	if binary == "" {
		binary = "../../bin/knarr"
	}
	name := os.Getenv("KNARR_LINEAR_NAME")
	if name == "" {
		name = "linear"
	}
	s := &server{t: t, binary: binary, dir: t.TempDir()}
	s.place = []string{"--name", name, "--data-dir", s.dir + "/data", "--run-dir", s.dir + "/run", "--kubeconfig", s.dir + "/kubeconfig"}
	s.listen = []string{"--listen", "127.0.0.1:" + freePort(t), "--node-listen", "127.0.0.1:" + freePort(t), "--pod-cidr", "10.193.0.0/16", "--service-cidr", "10.192.0.0/16", "--node-name", "linear"}
	var err error
	if s.log, err = os.Create(filepath.Join(s.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(s.log.Name())
			t.Logf("the end of knarr's log:\n%s", b[max(0, len(b)-5000):])
		}
		if out, err := exec.Command(s.binary, append([]string{"down"}, s.place...)...).CombinedOutput(); err != nil {
			t.Errorf("knarr down: %v\n%s", err, out)
		}
		_ = s.proc.Wait()
		s.log.Close()
	})
	s.start()
	return s
}

// start runs knarr and waits until it is ready.
func (s *server) start() {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	s.proc = exec.Command(s.binary, append(append([]string{"up"}, s.place...), s.listen...)...)
	s.proc.Env = append(os.Environ(), "KNARR_READY_FD=1")
	s.proc.Stdout, s.proc.Stderr, s.proc.ExtraFiles = s.log, s.log, []*os.File{w}
	if err := s.proc.Start(); err != nil {
		s.t.Fatal(err)
	}
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 16)); err != nil {
		s.t.Fatalf("knarr is not ready: %v", err)
	}
}

// kill ends knarr as a crash does.
func (s *server) kill() {
	if err := s.proc.Process.Kill(); err != nil {
		s.t.Error(err)
	}
	_ = s.proc.Wait()
}

func (s *server) config() *rest.Config {
	s.t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", s.dir+"/kubeconfig")
	if err != nil {
		s.t.Fatal(err)
	}
	c.QPS = -1
	return c
}

func freePort(t *testing.T) string {
	t.Helper()
	p, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(p)
}
