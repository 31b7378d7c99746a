package cmd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"knarr.dev/knarr/kit/pki"
)

// accessCommand makes what another machine needs to join as a node.
func accessCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "access NODE-NAME",
		Short: "Print the kubeconfig with which another machine joins as a node",
		Long: `Issue a certificate for system:node:NODE-NAME from this cluster's authority and
print it as a kubeconfig, for "knarr agent --kubeconfig" on the other machine.
It is a key to the node's pods: copy it over a safe way.`,
		Args: cobra.ExactArgs(1),
	}
	load := runningFlags(c)
	ip := c.Flags().String("node-ip", "", "address of the other machine (required)")
	server := c.Flags().String("server", "", "address of the API server as the other machine reaches it; default: this node's")
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if _, err := netip.ParseAddr(*ip); err != nil {
			return fmt.Errorf("--node-ip: %w", err)
		}
		dir := filepath.Join(cfg.DataDir, "pki")
		if _, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil {
			return fmt.Errorf("no cluster has its authority here: %w: run it where \"knarr up\" runs", err)
		}
		ca, err := pki.Open(dir, time.Now)
		if err != nil {
			return err
		}
		node := &Config{Node: NodeConfig{Name: args[0], IP: *ip}}
		pair, err := nodeCertificate(ca, node)
		if err != nil {
			return err
		}
		if *server == "" {
			_, port, err := net.SplitHostPort(cfg.API.Listen)
			if err != nil || port == "0" {
				return errors.New("the API server's address is not known: give --server")
			}
			*server = "https://" + net.JoinHostPort(cfg.Node.IP, port)
		}
		kc := clientcmdapi.NewConfig()
		addAccess(kc, cfg.Name, *server, ca, pair)
		kc.CurrentContext = cfg.Name
		b, err := clientcmd.Write(*kc)
		if err != nil {
			return fmt.Errorf("kubeconfig: %w", err)
		}
		_, err = c.OutOrStdout().Write(b)
		return err
	}
	return c
}
