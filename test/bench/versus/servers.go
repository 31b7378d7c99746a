package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"knarr.dev/knarr/test/upstream"
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
	ports, err := upstream.FreePorts(2)
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

// startUpstream starts upstream's kube-apiserver on an etcd.
func startUpstream(ctx context.Context, o *options) (*server, error) {
	up, err := upstream.Start(ctx, o.bin)
	if err != nil {
		return nil, err
	}
	s := &server{options: o, procs: up.Procs, stop: up.Stop}
	if err := s.connect(up.Config); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
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
