// Package clients runs the clients that people use against the real binary: Helm 3
// and 4, controller-runtime, client-go, and kubectl of the oldest and of the own
// version. It is a module of its own, so that none of their dependencies are knarr's.
package clients

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// env is the cluster that all tests share, each in namespaces of its own.
type env struct {
	dir, kubeconfig, image string
	config                 *rest.Config
}

var shared env

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		code = 1
	}
	os.Exit(code)
}

// run starts the cluster, runs the tests and removes the cluster.
func run(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("run as root: the cluster makes namespaces, mounts and control groups")
	}
	if shared.dir, err = os.MkdirTemp("/var/tmp", "knarr-clients-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(shared.dir)
	knarr, err := filepath.Abs(cmp.Or(os.Getenv("KNARR_BINARY"), "../../bin/knarr"))
	if err != nil {
		return 1, err
	}
	images := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer images.Close()
	shared.image = strings.TrimPrefix(images.URL, "http://") + "/hello:v1"
	if out, err := exec.Command("../../bin/mkimage", "-busybox", "-cmd", "/hello", "-env", "VERSION=v1", shared.image, "/hello=../../bin/hello").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("make the image: %w: %s: make build tools", err, out)
	}
	if err := commands(filepath.Join(shared.dir, "bin"), knarr); err != nil {
		return 1, err
	}
	shared.kubeconfig = filepath.Join(shared.dir, "kubeconfig")
	name := cmp.Or(os.Getenv("KNARR_CLIENTS_NAME"), "clients")
	place := []string{"--name", name, "--data-dir", shared.dir + "/data", "--run-dir", shared.dir + "/run", "--kubeconfig", shared.kubeconfig}
	stop, err := up(knarr, place)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if shared.config, err = clientcmd.BuildConfigFromFlags("", shared.kubeconfig); err != nil {
		return 1, err
	}
	shared.config.QPS = -1
	return m.Run(), nil
}

// up starts knarr and waits until it is ready.
func up(knarr string, place []string) (stop func() error, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	logged, err := os.Create(filepath.Join(shared.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer logged.Close()
	c := exec.Command(knarr, append(append([]string{"up"}, place...), "--listen", "127.0.0.1:"+freePort(), "--node-listen", ":"+freePort(),
		"--pod-cidr", "10.195.0.0/16", "--service-cidr", "10.194.0.0/16", "--node-name", "clients")...)
	c.Env = append(os.Environ(), "KNARR_READY_FD=1")
	c.Stdout, c.Stderr, c.ExtraFiles = logged, logged, []*os.File{w}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("%w: make build", err)
	}
	w.Close()
	stop = func() error {
		out, err := exec.Command(knarr, append([]string{"down"}, place...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("knarr down: %w: %s", err, out)
		}
		_ = c.Wait()
		return nil
	}
	if n, _ := r.Read(make([]byte, 16)); n == 0 {
		b, _ := os.ReadFile(logged.Name())
		return nil, errors.Join(fmt.Errorf("knarr did not start: %s", b), stop())
	}
	return stop, nil
}

// freePort avoids the ports from which the kernel takes those of outgoing connections.
func freePort() string {
	for {
		p := fmt.Sprint(20000 + rand.IntN(10000))
		if l, err := net.Listen("tcp", "127.0.0.1:"+p); err == nil {
			l.Close()
			return p
		}
	}
}

// commands builds the command-line clients: folders kubectl132 and kubectl136, to
// be put into PATH, and helm3 and helm4.
func commands(dir, knarr string) error {
	for _, b := range []struct{ dir, pkg, out, ldflags string }{
		// kubectl refuses to compare versions without one of its own.
		{"kubectl132", ".", "kubectl132/kubectl", "-X k8s.io/component-base/version.gitVersion=v1.32.3"},
		{".", "helm.sh/helm/v3/cmd/helm", "helm3", ""},
		{".", "helm.sh/helm/v4/cmd/helm", "helm4", ""},
	} {
		c := exec.Command("go", "build", "-trimpath", "-ldflags", b.ldflags, "-o", filepath.Join(dir, b.out), b.pkg)
		c.Dir = b.dir
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", b.out, err, out)
		}
	}
	own := filepath.Join(dir, "kubectl136")
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(own, "kubectl"), fmt.Appendf(nil, "#!/bin/sh\nexec %s kubectl \"$@\"\n", knarr), 0o755)
}

// client is a client-go client set.
func client(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// namespace makes a namespace for a test and deletes it at its end.
func namespace(t *testing.T, name string) string {
	t.Helper()
	c := client(t)
	if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.CoreV1().Namespaces().Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return name
}

// shell runs a line of bash in a folder of its own with the named kubectl in front
// of PATH.
func shell(t *testing.T, kubectl, dir, line string, vars ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", line)
	c.Dir = dir
	bin := filepath.Join(shared.dir, "bin")
	c.Env = append(os.Environ(), "KUBECONFIG="+shared.kubeconfig, "IMAGE="+shared.image, "HOME="+dir,
		"PATH="+filepath.Join(bin, kubectl)+":"+bin+":"+os.Getenv("PATH"))
	c.Env = append(c.Env, vars...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	c.WaitDelay = 10 * time.Second
	err := c.Run()
	return out.String(), err
}
