package cmd

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

func statusCommand() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Tell how this machine's cluster fares", Args: cobra.NoArgs}
	load := runningFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		return status(c, cfg, c.OutOrStdout())
	}
	return c
}

// statusTimeout bounds the question to a server that may hang.
const statusTimeout = 5 * time.Second

func status(c *cobra.Command, cfg *Config, out io.Writer) error {
	pid := cfg.process()
	if pid == 0 {
		if _, err := os.Stat(cfg.RunDir); err == nil {
			return fmt.Errorf("%s is not running, but containers may be: \"knarr up\" takes them up again, \"knarr down\" removes them", cfg.Name)
		}
		return fmt.Errorf("%s is not running: start it with \"knarr up\"", cfg.Name)
	}
	rc, err := clientcmd.BuildConfigFromFlags("", adminKubeconfig(cfg.DataDir))
	if err != nil {
		return fmt.Errorf("access to the cluster: %w", err)
	}
	rc.Timeout = statusTimeout
	cs, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("access to the cluster: %w", err)
	}
	nodes, err := cs.CoreV1().Nodes().List(c.Context(), metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("process %d runs, but its API does not answer: %w", pid, err)
	}
	pods, err := cs.CoreV1().Pods("").List(c.Context(), metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "cluster\t%s, API at %s\n", cfg.Name, rc.Host)
	fmt.Fprintf(w, "process\t%d, %s\n", pid, memory(pid))
	for _, n := range nodes.Items {
		state := "not ready"
		if nodeReady(&n) {
			state = "ready"
		}
		fmt.Fprintf(w, "node\t%s is %s%s\n", n.Name, state, furtherProcess(cfg, n.Name))
	}
	count := map[corev1.PodPhase]int{}
	for _, p := range pods.Items {
		count[p.Status.Phase]++
	}
	fmt.Fprintf(w, "pods\t%d running, %d pending, %d failed\n", count[corev1.PodRunning], count[corev1.PodPending], count[corev1.PodFailed])
	return w.Flush()
}

// furtherProcess tells of the process of a node beside the first.
func furtherProcess(cfg *Config, node string) string {
	n := &Config{RunDir: filepath.Join(cfg.nodesDir(), node)}
	if _, err := os.Stat(n.RunDir); err != nil {
		return ""
	}
	if pid := n.process(); pid != 0 {
		return fmt.Sprintf(" (process %d, %s)", pid, memory(pid))
	}
	return " (its process does not run)"
}

// memory tells a process's resident memory.
func memory(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return "memory unknown"
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return "memory unknown"
	}
	return fmt.Sprintf("%d MiB resident", resident*int64(os.Getpagesize())>>20)
}

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Print the configuration that is in force", Args: cobra.NoArgs}
	load := instanceFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if err := cfg.validate(); err != nil {
			return err
		}
		b, err := yaml.Marshal(cfg)
		if err != nil {
			return err
		}
		_, err = c.OutOrStdout().Write(b)
		return err
	}
	return c
}
