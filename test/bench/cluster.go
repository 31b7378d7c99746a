package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"knarr.dev/knarr/test/image"
)

// cluster is the instance that is measured.
type cluster struct {
	dir, binary string
	args, place []string
	image       string
	profiles    string // folder; empty: none are taken
	registry    *httptest.Server
	proc        *exec.Cmd
	config      *rest.Config
	client      *kubernetes.Clientset
}

func newCluster(profiles string) (*cluster, error) {
	dir, err := os.MkdirTemp("/var/tmp", "knarr-bench-")
	if err != nil {
		return nil, err
	}
	binary, err := filepath.Abs("bin/knarr")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, binary: binary, profiles: profiles}
	c.args = []string{"--name", "bench", "--data-dir", dir + "/data", "--run-dir", dir + "/run", "--kubeconfig", dir + "/kubeconfig"}
	c.place = []string{"--listen", "127.0.0.1:16443", "--node-listen", ":16250", "--pod-cidr", "10.199.0.0/16", "--service-cidr", "10.198.0.0/16"}
	if profiles != "" {
		if err := os.MkdirAll(profiles, 0o755); err != nil {
			return nil, err
		}
		c.place = append(c.place, "--log-level", "debug")
	}
	c.registry = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	c.image = strings.TrimPrefix(c.registry.URL, "http://") + "/sleep:1"
	return c, image.Push(c.image, image.Spec{Busybox: true, Cmd: []string{"sleep", "1000000"}})
}

// up boots and tells how long it took until the cluster could be used.
func (c *cluster) up(ctx context.Context) (time.Duration, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	logFile, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer logFile.Close()
	c.proc = exec.Command(c.binary, append(append([]string{"up"}, c.args...), c.place...)...)
	c.proc.Env = append(os.Environ(), "KNARR_READY_FD=1")
	c.proc.Stdout, c.proc.Stderr, c.proc.ExtraFiles = logFile, logFile, []*os.File{w}
	start := time.Now()
	if err := c.proc.Start(); err != nil {
		return 0, err
	}
	w.Close()
	if n, _ := r.Read(make([]byte, 16)); n == 0 {
		b, _ := os.ReadFile(c.logFile())
		return 0, fmt.Errorf("the cluster did not start: %s", b)
	}
	took := time.Since(start)
	if c.config, err = clientcmd.BuildConfigFromFlags("", c.dir+"/kubeconfig"); err != nil {
		return 0, err
	}
	c.config.QPS = -1
	c.client, err = kubernetes.NewForConfig(c.config)
	return took, err
}

func (c *cluster) logFile() string {
	if c.profiles != "" {
		return filepath.Join(c.profiles, "log")
	}
	return filepath.Join(c.dir, "log")
}

func (c *cluster) down() error {
	out, err := exec.Command(c.binary, append([]string{"down"}, c.args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("down: %w: %s", err, out)
	}
	_ = c.proc.Wait()
	return nil
}

func (c *cluster) remove() {
	if err := c.down(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	c.registry.Close()
	os.RemoveAll(c.dir)
}
