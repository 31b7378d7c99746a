package usage

import (
	"context"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"knarr.dev/knarr/agent/podspec"
)

// ReadAll measures what Read does, and the disk space of logs and volumes, which
// walks them: its cost grows with the number of their files.
func (m *Meter) ReadAll(ctx context.Context) (*stats.Summary, error) {
	r, err := m.Read(ctx)
	if err != nil {
		return nil, err
	}
	out := r.Summary // a copy; what is added below must not be seen in r
	out.Pods = make([]stats.PodStats, len(r.Pods))
	pods := map[string]*corev1.Pod{}
	for _, p := range m.cfg.Pods() {
		pods[string(p.UID)] = p
	}
	now := metav1.NewTime(r.At)
	for i, p := range r.Pods {
		p.Containers = append([]stats.ContainerStats{}, p.Containers...)
		if pod := pods[p.PodRef.UID]; pod != nil && ctx.Err() == nil {
			m.disk(&p, pod, out.Node.Fs, now)
		}
		out.Pods[i] = p
	}
	out.Node.Runtime = &stats.RuntimeStats{ImageFs: out.Node.Fs, ContainerFs: out.Node.Fs}
	return &out, ctx.Err()
}

// disk adds a pod's logs, volumes and their sum with its containers' layers.
func (m *Meter) disk(p *stats.PodStats, pod *corev1.Pod, node *stats.FsStats, now metav1.Time) {
	logs := podspec.LogDir(m.cfg.LogRoot, pod.Namespace, pod.Name, string(pod.UID))
	total := onNode(node, now, 0, 0)
	add := func(f *stats.FsStats) {
		total.UsedBytes, total.InodesUsed = sum(total.UsedBytes, f.UsedBytes), sum(total.InodesUsed, f.InodesUsed)
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		bytes, inodes := Tree(filepath.Join(logs, c.Name))
		c.Logs = onNode(node, now, bytes, inodes)
		add(c.Logs)
		if c.Rootfs != nil {
			used := *c.Rootfs
			if node != nil {
				used.AvailableBytes, used.CapacityBytes, used.Inodes, used.InodesFree = node.AvailableBytes, node.CapacityBytes, node.Inodes, node.InodesFree
			}
			c.Rootfs = &used
			add(c.Rootfs)
		}
	}
	for _, dir := range m.cfg.Volumes(string(pod.UID)) {
		v := stats.VolumeStats{Name: filepath.Base(dir)}
		switch own := device(dir); own {
		case device(m.cfg.Root):
			bytes, inodes := Tree(dir)
			v.FsStats = *onNode(node, now, bytes, inodes)
			add(&v.FsStats)
		case device(filepath.Dir(dir)): // in memory, among others
			bytes, inodes := Tree(dir)
			v.FsStats = *onNode(Disk(dir, now), now, bytes, inodes)
		default:
			if f := Disk(dir, now); f != nil {
				v.FsStats = *f
			}
		}
		p.VolumeStats = append(p.VolumeStats, v)
	}
	p.VolumeStats = append(p.VolumeStats, m.Claims(pod, now)...)
	p.EphemeralStorage = total
}

// Claims measures the file systems behind a pod's claims.
func (m *Meter) Claims(pod *corev1.Pod, now metav1.Time) (list []stats.VolumeStats) {
	if m.cfg.Ready == nil {
		return nil
	}
	ready := m.cfg.Ready(string(pod.UID))
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, ok := ready[v.Name]
		if !ok || v.PersistentVolumeClaim == nil {
			continue
		}
		if f := Disk(path, now); f != nil {
			ref := &stats.PVCReference{Name: v.PersistentVolumeClaim.ClaimName, Namespace: pod.Namespace}
			list = append(list, stats.VolumeStats{Name: v.Name, PVCRef: ref, FsStats: *f})
		}
	}
	return list
}

// onNode is a use of a file system that belongs to the node.
func onNode(node *stats.FsStats, now metav1.Time, bytes, inodes uint64) *stats.FsStats {
	f := &stats.FsStats{Time: now, UsedBytes: &bytes, InodesUsed: &inodes}
	if node != nil {
		f.AvailableBytes, f.CapacityBytes, f.Inodes, f.InodesFree = node.AvailableBytes, node.CapacityBytes, node.Inodes, node.InodesFree
	}
	return f
}

// device is that of a path's file system; 0 if there is no such path.
func device(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Dev
}

// Tree sums the blocks and files beneath a folder, in bytes; files with several
// names count once for each. What cannot be read is left out.
func Tree(root string) (bytes, inodes uint64) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			bytes += uint64(st.Blocks) * 512
			inodes++
		}
		return nil
	})
	return bytes, inodes
}
