package cmd

import (
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
)

// self runs one of this package's tests in a process of its own.
func self(t *testing.T, test string, env ...string) (stdout, stderr string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe, "-test.run=^"+test+"$", "-test.v")
	c.Env = env
	var out, log strings.Builder
	c.Stdout, c.Stderr = &out, &log
	if err := c.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", test, err, &out, &log)
	}
	return out.String(), log.String()
}

// TestKubectlHelp is what TestKubectlLanguage runs in processes of their own.
func TestKubectlHelp(t *testing.T) {
	if code := runKubectl([]string{"kubectl", "config", "--help"}); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestKubectlOptions is what TestKubectlFlags runs.
func TestKubectlOptions(t *testing.T) {
	if code := runKubectl([]string{"kubectl", "options"}); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestKubectlFlags: kubectl's program adds flags to its commands, which the library
// does not have.
func TestKubectlFlags(t *testing.T) {
	out, _ := self(t, "TestKubectlOptions")
	for _, flag := range []string{"-v, --v=0", "--vmodule=", "--kubeconfig=", "--as="} {
		if !strings.Contains(out, flag) {
			t.Errorf("no %s in:\n%s", flag, out)
		}
	}
}

func TestKubectlLanguage(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"LANG=de_DE.UTF-8", "Zeige Cluster"},
		{"LANG=de_DE.UTF-8 LC_ALL=C.UTF-8", "Display clusters"},
		{"LANG=C LC_MESSAGES=de_DE.UTF-8", "Zeige Cluster"},
		{"LANG=en_US.UTF-8", "Display clusters"},
		{"LANG=de_DE", "Display clusters"}, // as kubectl has it
		{"LANG=", "Display clusters"},
	} {
		if out, _ := self(t, "TestKubectlHelp", strings.Fields(c.env)...); !strings.Contains(out, c.want) {
			t.Errorf("%s: no %q in:\n%s", c.env, c.want, out)
		}
	}
}

// TestStartLoadsNoTranslation: reading kubectl's translation into English took a
// third of every process's start. Go tells what each package allocates then.
func TestStartLoadsNoTranslation(t *testing.T) {
	const first, most = "k8s.io/kubectl/pkg/cmd/options", 100_000 // bytes; with the translation 4 million
	_, trace := self(t, "none", "GODEBUG=inittrace=1")
	for line := range strings.Lines(trace) {
		f := strings.Fields(line) // init PACKAGE @14 ms, 0.016 ms clock, 168 bytes, 4 allocs
		if len(f) < 8 || f[1] != first {
			continue
		}
		if n, err := strconv.Atoi(f[7]); err != nil || n > most {
			t.Errorf("%s: %v", line, err)
		}
		return
	}
	t.Errorf("%s, the first package that translates, is not in the trace:\n%s", first, trace)
}

// TestPrintGC is what TestStartCollectsLate runs.
func TestPrintGC(t *testing.T) {
	percent := debug.SetGCPercent(100)
	debug.SetGCPercent(percent)
	fmt.Println("percent", percent)
}

// TestStartCollectsLate: the garbage of a start is left alone for as long as a command
// takes, unless the environment says otherwise.
func TestStartCollectsLate(t *testing.T) {
	for env, want := range map[string]string{"GOGC=": "percent 400\n", "GOGC=70": "percent 70\n"} {
		if out, _ := self(t, "TestPrintGC", env); !strings.Contains(out, want) {
			t.Errorf("%s: no %q in:\n%s", env, want, out)
		}
	}
}
