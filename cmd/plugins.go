package cmd

import (
	"os"
	"path/filepath"
)

// defaultKubeletDir is where the world looks for a node's agent.
const defaultKubeletDir = "/var/lib/kubelet"

// kubeletDir is the folder with the sockets for plugins and monitors. Only one agent
// of a machine can be where they look by default.
func (c *Config) kubeletDir() string {
	switch {
	case c.Node.KubeletDir != "":
		return c.Node.KubeletDir
	case c.isTheNode():
		return defaultKubeletDir
	}
	return filepath.Join(c.DataDir, "kubelet")
}

// removeSockets removes the agent's sockets, and their folders if nobody else has
// anything in them; the plugins' own sockets stay.
func (c *Config) removeSockets() {
	dir := c.kubeletDir()
	for _, folder := range []string{"device-plugins", "pod-resources", "plugins_registry", "plugins"} {
		if folder == "device-plugins" || folder == "pod-resources" {
			_ = os.Remove(filepath.Join(dir, folder, "kubelet.sock")) // it may not be there
		}
		_ = os.Remove(filepath.Join(dir, folder)) // not if it is in use
	}
	_ = os.Remove(dir)
}

// dockerDirs are where a node's docker configuration may be, as with kubelets.
func (c *Config) dockerDirs() []string {
	dirs := []string{c.kubeletDir()}
	if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs, filepath.Join(home, ".docker"))
	}
	return append(dirs, "/.docker")
}
