package cmd

import (
	"errors"
	"os"
	"path/filepath"

	"knarr.dev/knarr/agent/pod"
)

// Where the world looks for the logs of a node's pods, by pod and all together.
const (
	defaultLogRoot = "/var/log/pods"
	logLinks       = "/var/log/containers"
)

// isTheNode tells whether this is the machine's own node: only one agent of a machine
// can be where the world looks by default.
func (c *Config) isTheNode() bool { return c.Name == "knarr" && c.Group == "" } // a further node has a group

// logRoot is the folder of the pods' logs.
func (c *Config) logRoot() string {
	switch {
	case c.Node.PodLogsDir != "":
		return c.Node.PodLogsDir
	case c.isTheNode():
		return defaultLogRoot
	}
	return filepath.Join(c.DataDir, "logs")
}

// logLinks is the folder with links to all logs; empty: there is none.
func (c *Config) logLinks() string {
	if c.isTheNode() {
		return logLinks
	}
	return ""
}

// removeLogs removes the logs of the node's pods, wherever they lie, and no others.
func (c *Config) removeLogs() error {
	root := c.logRoot()
	pods, err := os.ReadDir(filepath.Join(c.agentRoot(), "pods"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, p := range pods {
		dirs, _ := filepath.Glob(filepath.Join(root, "*_"+p.Name())) // no bad pattern
		for _, dir := range dirs {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	if links := c.logLinks(); links != "" {
		if err := pod.SweepLinks(links, root); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		_ = os.Remove(links) // not if it is in use
	}
	_ = os.Remove(root) // the same
	return errors.Join(errs...)
}
