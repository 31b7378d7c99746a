package cmd

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"knarr.dev/knarr/container"
	"knarr.dev/knarr/datapath"
	"knarr.dev/knarr/kit/lean"
)

func runtimeCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "runtime", Short: "Run the container runtime alone, for any kubelet",
		Long: `Serve the Kubernetes Container Runtime Interface on RUN-DIR/cri.sock, without
API server and agent. Containers go on when it ends.`, Args: cobra.NoArgs,
	}
	load := instanceFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if err := cfg.validate(); err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("knarr runtime must run as root")
		}
		ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		log := logger(cfg.LogLevel, os.Stderr)
		if err := cfg.makeDirs(); err != nil {
			return err
		}
		data, err := datapath.Open(ctx, cfg.datapathConfig(log))
		if err != nil {
			return fmt.Errorf("data path: %w", err)
		}
		defer data.Close()
		conf := cfg.containerConfig(data, log)
		conf.Ports = hostPorts(data)
		s, err := container.New(ctx, conf)
		if err != nil {
			return fmt.Errorf("container runtime: %w", err)
		}
		defer s.Close()
		l, err := listenUnix(cfg.criSocket())
		if err != nil {
			return err
		}
		if err := cfg.noteStart(); err != nil {
			return err
		}
		defer os.Remove(cfg.pidFile())
		fmt.Fprintf(c.OutOrStdout(), "CRI is served at unix://%s\n", cfg.criSocket())
		spare(log)
		go lean.Keep(ctx, log)
		return s.Serve(ctx, l)
	}
	return c
}
