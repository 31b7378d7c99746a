// Package cmd is knarr's command line, and the one place where all parts are
// wired together.
package cmd

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"knarr.dev/knarr/kit/cni"
)

// Version is knarr's own version, set at build time by -ldflags.
var Version = "dev"

// logLevels are the names that --log-level knows.
var logLevels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// Main runs the command line and returns the exit code. Called as kubectl, by a
// link of that name, it is kubectl; called as knarr-cni, a runtime's CNI plugin.
func Main(args []string) int {
	if strings.HasPrefix(filepath.Base(args[0]), "kubectl") {
		return runKubectl(args)
	}
	if name := filepath.Base(args[0]); name == cni.Program || name == cni.LoopbackProgram {
		return cni.Plugin(os.Getenv, os.Stdin, os.Stdout)
	}
	if len(args) > 1 && args[1] == "kubectl" {
		return runKubectl(args[1:])
	}
	root := rootCommand()
	root.SetArgs(args[1:])
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "knarr:", err)
		return 1
	}
	return 0
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "knarr",
		Short:         "Kubernetes in one small binary",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		upCommand(),
		agentCommand(),
		statusCommand(),
		downCommand(),
		kubectlCommand(),
		imageCommand(),
		runtimeCommand(),
		checkCommand(),
		debugCommand(),
		configCommand(),
		versionCommand(),
	)
	return root
}

// instanceFlags adds them to a command. load must be called when the command
// runs: it reads the file and lets the flags that were given override it.
func instanceFlags(c *cobra.Command) (load func() (*Config, error)) {
	var file string
	d := defaultConfig()
	set := *d
	f := c.Flags()
	f.StringVar(&file, "config", defaultConfigFile, "configuration file")
	f.StringVar(&set.Name, "name", d.Name, "instance name, 1 to 7 letters and digits; several instances can share a machine")
	f.StringVar(&set.DataDir, "data-dir", d.DataDir, "what survives a reboot")
	f.StringVar(&set.RunDir, "run-dir", d.RunDir, "sockets and other volatile state")
	f.StringVar(&set.LogLevel, "log-level", d.LogLevel, "debug, info, warn or error")
	if kubeconfig := "kubeconfig"; f.Lookup(kubeconfig) == nil {
		f.StringVar(&set.API.Kubeconfig, kubeconfig, d.API.Kubeconfig, "kubeconfig to merge access into; empty: none")
	}
	override := func(cfg *Config) {
		for name, apply := range map[string]func(){
			"name":       func() { cfg.Name = set.Name },
			"data-dir":   func() { cfg.DataDir = set.DataDir },
			"run-dir":    func() { cfg.RunDir = set.RunDir },
			"log-level":  func() { cfg.LogLevel = set.LogLevel },
			"kubeconfig": func() { cfg.API.Kubeconfig = set.API.Kubeconfig },
		} {
			if f.Changed(name) {
				apply()
			}
		}
		// An instance with a name of its own gets its own directories.
		if cfg.RunDir == defaultRunDir && cfg.Name != d.Name {
			cfg.RunDir = defaultRunDir + "-" + cfg.Name
		}
		if cfg.DataDir == defaultDataDir && cfg.Name != d.Name {
			cfg.DataDir = defaultDataDir + "-" + cfg.Name
		}
	}
	return func() (*Config, error) {
		cfg, err := loadConfig(file, f.Changed("config"))
		if err != nil {
			return nil, err
		}
		override(cfg)
		return cfg, nil
	}
}

// runningFlags are instanceFlags for verbs that deal with an instance that has
// been started: what "up" was given then is in force, not the file.
func runningFlags(c *cobra.Command) (load func() (*Config, error)) {
	ask := instanceFlags(c)
	return func() (*Config, error) {
		cfg, err := ask()
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(cfg.startedFile()); err != nil {
			return cfg, nil // it has never been started, or its directory is gone
		}
		started, err := loadConfig(cfg.startedFile(), true)
		if err != nil {
			return nil, err
		}
		if started.RunDir != cfg.RunDir || started.Name != cfg.Name {
			return cfg, nil
		}
		started.LogLevel, started.API.Kubeconfig = cfg.LogLevel, cfg.API.Kubeconfig
		return started, nil
	}
}

func logger(level string, w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: logLevels[level]}))
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the versions", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			commit := ""
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						commit = " (" + s.Value[:min(12, len(s.Value))] + ")"
					}
				}
			}
			fmt.Fprintf(c.OutOrStdout(), "knarr %s%s\nKubernetes API %s\n%s %s/%s\n", Version, commit, apiVersion().GitVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}
