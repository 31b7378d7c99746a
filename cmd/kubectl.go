package cmd

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	_ "init.knarr.dev/early" // what must come before other packages
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

// kubectlCommand documents the verb; Main runs kubectl before cobra parses, so
// that all of kubectl's own flags reach it.
func kubectlCommand() *cobra.Command {
	return &cobra.Command{Use: "kubectl", Short: "Kubernetes' own command line, embedded", DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error { return nil }}
}

// runKubectl runs the embedded kubectl with args, the first being its name. With
// no access configured it uses this machine's cluster.
func runKubectl(args []string) int {
	if file := defaultKubeconfig(); os.Getenv("KUBECONFIG") == "" {
		if _, err := os.Stat(file); err != nil {
			if own := adminKubeconfig(defaultDataDir); readable(own) {
				os.Setenv("KUBECONFIG", own)
			}
		}
	}
	os.Args = args
	c := kubectl.NewDefaultKubectlCommand()
	c.SetArgs(args[1:])
	if err := cli.RunNoErrOutput(c); err != nil {
		util.CheckErr(err)
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}

func readable(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
