package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// release is the version of Kubernetes whose suite runs; go.mod has the same.
const release = "v1.36.3"

// tools is the folder of the programs that buildTools makes.
type tools string

func (t tools) path(name string) string { return filepath.Join(string(t), name) }

// buildTools compiles the suite and the programs of its images, which are Go
// modules. The first time takes some minutes.
func buildTools(ctx context.Context, dir string, kubelet bool) (tools, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	stamp := fmt.Sprintf("-s -w -X k8s.io/component-base/version.gitVersion=%s -X k8s.io/client-go/pkg/version.gitVersion=%[1]s", release)
	const build, test = "build", "test"
	programs := []struct{ name, verb, pkg string }{
		{"e2e.test", test, "./suite"},
		{"ginkgo", build, "github.com/onsi/ginkgo/v2/ginkgo"},
		{"kubectl", build, "k8s.io/kubernetes/cmd/kubectl"},
		{"agnhost", build, "k8s.io/kubernetes/test/images/agnhost"},
		{"sample-apiserver", build, "k8s.io/sample-apiserver"},
		{"etcd", build, "go.etcd.io/etcd/server/v3"},
	}
	if kubelet {
		programs = append(programs, struct{ name, verb, pkg string }{"kubelet", build, "k8s.io/kubernetes/cmd/kubelet"})
	}
	for _, p := range programs {
		step("building %s", p.name)
		args := []string{p.verb, "-trimpath", "-ldflags", stamp, "-o", filepath.Join(dir, p.name)}
		if p.verb == test {
			args = append(args, "-c")
		}
		c := exec.CommandContext(ctx, "go", append(args, p.pkg)...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", p.pkg, err, out)
		}
	}
	for name, source := range sources {
		if err := compile(ctx, filepath.Join(dir, name), source); err != nil {
			return "", err
		}
	}
	return tools(dir), nil
}

// sources are the small C programs of images, by name.
var sources = map[string]string{
	// Waits for a signal, and reaps as the first process of a pod must.
	"pause": `#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap); for (;;) pause(); }
`,
	// Says as whom it runs; its file has the set-user-ID bit.
	"nnp": `#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\n", geteuid()); return 0; }
`,
	// The shell of the busybox image: busybox's own, but where a variable's name is
	// none for a shell, which Debian's busybox would drop, bash.
	"sh": `#include <ctype.h>
#include <unistd.h>
extern char **environ;
int main(int n, char **argv) {
	(void)n;
	for (char **e = environ; *e; e++)
		for (char *c = *e; *c && *c != '='; c++)
			if (!isalnum(*c) && *c != '_') { execv("/bin/bash", argv); return 127; }
	execv("/bin/busybox", argv);
	return 127;
}
`,
}

func compile(ctx context.Context, out, source string) error {
	src := out + ".c"
	if err := os.WriteFile(src, []byte(source), 0o644); err != nil {
		return err
	}
	if b, err := exec.CommandContext(ctx, "gcc", "-static", "-O2", "-s", "-o", out, src).CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s: %w\n%s", src, err, b)
	}
	return nil
}
