package pod

import (
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// maxLinkName leaves room for ".log" in the longest name of a file.
const maxLinkName = 255 - len(".log")

// linkName is the name under which log collectors know a container's log.
func linkName(namespace, pod, container, id string) string {
	name := pod + "_" + namespace + "_" + container + "-" + id
	return name[:min(len(name), maxLinkName)] + ".log"
}

// linkLog shows a container's log among all logs of the node.
func (d *Deps) linkLog(pod *corev1.Pod, c *runtimeapi.ContainerStatus) {
	if d.LogLinks == "" {
		return
	}
	name := c.Metadata.GetName()
	log := filepath.Join(podspec.LogDir(d.LogRoot, pod.Namespace, pod.Name, string(pod.UID)), podspec.LogPath(name, podspec.RestartCount(c.Annotations)))
	if err := os.Symlink(log, filepath.Join(d.LogLinks, linkName(pod.Namespace, pod.Name, name, c.Id))); err != nil && !os.IsExist(err) {
		d.Log.Warn("a container's log is not shown to collectors", "pod", pod.Namespace+"/"+pod.Name, "container", name, "error", err)
	}
}

// unlinkLog undoes linkLog for a container that is removed.
func (d *Deps) unlinkLog(c *view.Container) {
	if d.LogLinks != "" {
		_ = os.Remove(filepath.Join(d.LogLinks, linkName(c.Labels[podspec.LabelPodNamespace], c.Labels[podspec.LabelPodName], c.Metadata.GetName(), c.Id))) // it may not be there
	}
}

// SweepLinks removes the links of logs beneath root that are gone.
func SweepLinks(links, root string) error {
	entries, err := os.ReadDir(links)
	if err != nil {
		return err
	}
	for _, e := range entries {
		link := filepath.Join(links, e.Name())
		target, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(target, root+"/") {
			continue // not a node's agent's, or another's
		}
		if _, err := os.Lstat(target); os.IsNotExist(err) {
			if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}
