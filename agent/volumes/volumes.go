// Package volumes prepares the volumes of pods as directories of the node and
// keeps those current whose content comes from API objects.
//
// Layout beneath the root: pods/<uid>/volumes/<kind>/<name>; Secrets, tokens and the
// like, which must not come to a disk: memory/<uid>/<kind>/<name>, on a file system of
// the node in memory. What is there after a restart is taken up again: preparing a volume
// is idempotent.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
)

// Config is what a Manager needs.
type Config struct {
	Root     string // the agent's state directory
	NodeName string
	Client   client.Interface
	Objects  Objects
	Clock    clock.PassiveClock
	// Node capacity answers resourceFieldRef of limits that a container does not set.
	Allocatable func() corev1.ResourceList
	// Images ensures an image for a pod and returns its reference; nil: volumes
	// of images are refused.
	Images func(ctx context.Context, pod *corev1.Pod, image string, policy corev1.PullPolicy) (string, error)
	// Observe is told of each volume that was made or brought up to date, or not; nil: nobody is.
	Observe func(plugin string, took time.Duration, err error)
	Log     *slog.Logger
}

// Objects reads the API objects that volumes and environments refer to.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
}

// Manager prepares and removes volumes. Make one with New.
type Manager struct {
	cfg    Config
	tokens *tokens
	made   made
}

// New returns a manager.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, tokens: newTokens(cfg.Client, cfg.Clock)}
}

// Open mounts the file system in memory, unless it is there from before.
func (m *Manager) Open() error {
	dir := m.memory()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if there, err := isMountPoint(dir); err != nil || there {
		return err
	}
	return mountTmpfs(dir, unix.MS_NOSUID|unix.MS_NODEV, "mode=0750")
}

// mountTmpfs mounts a file system in memory that is not swapped out, where the kernel
// can have it so.
func mountTmpfs(dir string, flags uintptr, data string) error {
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, data+",noswap")
	if errors.Is(err, unix.EINVAL) { // before Linux 6.4
		err = unix.Mount("tmpfs", dir, "tmpfs", flags, data)
	}
	if err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

func (m *Manager) memory(below ...string) string {
	return filepath.Join(append([]string{m.cfg.Root, "memory"}, below...)...)
}

// PodDir is the directory of everything that belongs to a pod.
func (m *Manager) PodDir(uid string) string { return filepath.Join(m.cfg.Root, "pods", uid) }

func (m *Manager) dir(pod *corev1.Pod, kind, name string) string {
	return filepath.Join(m.PodDir(string(pod.UID)), "volumes", "kubernetes.io~"+kind, name)
}

// Dirs lists the directories of a pod's volumes.
func (m *Manager) Dirs(uid string) []string {
	onDisk, _ := filepath.Glob(filepath.Join(m.PodDir(uid), "volumes", "*", "*")) // no bad pattern
	inMemory, _ := filepath.Glob(m.memory(uid, "*", "*"))
	return append(onDisk, inMemory...)
}

// Pods lists the UIDs of all pods that have directories.
func (m *Manager) Pods() (map[string]bool, error) {
	out := map[string]bool{}
	for _, dir := range []string{filepath.Dir(m.PodDir("any")), m.memory()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			out[e.Name()] = true
		}
	}
	return out, nil
}

// ReadOnly tells whether containers cannot write to a volume, whatever their mounts say.
func ReadOnly(v *corev1.Volume) bool {
	return isContent(v) || v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
}

// isContent tells whether a volume shows what the API holds.
func isContent(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// Prepared are the host paths of a pod's volumes by name. Volumes that show an
// image have no path: see ImageRef.
type Prepared map[string]string

// imagePrefix marks a volume that the runtime mounts from an image.
const imagePrefix = "image:"

// ImageRef tells whether a prepared volume is an image, and which.
func ImageRef(path string) (ref string, ok bool) { return strings.CutPrefix(path, imagePrefix) }

// image ensures the image behind a volume.
func (m *Manager) image(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	if m.cfg.Images == nil {
		return "", errors.New("image volumes are not supported by this node; copy the content with an init container")
	}
	policy := v.Image.PullPolicy
	if policy == "" {
		policy = corev1.PullIfNotPresent
	}
	return m.cfg.Images(ctx, pod, v.Image.Reference, policy)
}

// Prepare makes every volume of the pod. It returns what is ready and joins the
// errors of what is not. refresh is when contents that age (service account
// tokens) must be prepared again; zero for never.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod) (ready Prepared, refresh time.Time, err error) {
	ready = Prepared{}
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, next, err := m.prepare(ctx, pod, v)
		if err != nil {
			errs = append(errs, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err))
			continue
		}
		ready[v.Name] = path
		if !next.IsZero() && (refresh.IsZero() || next.Before(refresh)) {
			refresh = next
		}
	}
	return ready, refresh, errors.Join(errs...)
}

// Update writes the current content of the volumes that follow API objects.
func (m *Manager) Update(ctx context.Context, pod *corev1.Pod) (refresh time.Time, err error) {
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !isContent(v) {
			continue
		}
		_, next, err := m.prepare(ctx, pod, v)
		if err != nil {
			errs = append(errs, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err))
		}
		if !next.IsZero() && (refresh.IsZero() || next.Before(refresh)) {
			refresh = next
		}
	}
	return refresh, errors.Join(errs...)
}

func (m *Manager) make(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, time.Time, error) {
	switch {
	case v.EmptyDir != nil:
		p, err := m.emptyDir(pod, v)
		return p, time.Time{}, err
	case v.HostPath != nil:
		p, err := hostPath(v.HostPath)
		return p, time.Time{}, err
	case v.ConfigMap != nil:
		files, err := m.configMap(ctx, pod, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.DefaultMode, isTrue(v.ConfigMap.Optional))
		return m.content(pod, v, "configmap", files, time.Time{}, err)
	case v.Secret != nil:
		files, err := m.secret(ctx, pod, v.Secret.SecretName, v.Secret.Items, v.Secret.DefaultMode, isTrue(v.Secret.Optional))
		return m.content(pod, v, "secret", files, time.Time{}, err)
	case v.DownwardAPI != nil:
		files, err := m.downward(pod, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
		return m.content(pod, v, "downward-api", files, time.Time{}, err)
	case v.Projected != nil:
		files, refresh, err := m.projected(ctx, pod, v.Projected)
		return m.content(pod, v, "projected", files, refresh, err)
	case v.PersistentVolumeClaim != nil:
		p, err := m.claim(ctx, pod, v.PersistentVolumeClaim.ClaimName)
		return p, time.Time{}, err
	case v.Image != nil:
		ref, err := m.image(ctx, pod, v)
		return imagePrefix + ref, time.Time{}, err
	}
	return "", time.Time{}, fmt.Errorf("volume %q has a type that this node does not support", v.Name)
}

// content puts files into the volume's directory in one step.
func (m *Manager) content(pod *corev1.Pod, v *corev1.Volume, kind string, files map[string]file, refresh time.Time, err error) (string, time.Time, error) {
	if err != nil {
		return "", time.Time{}, err
	}
	dir := m.memory(string(pod.UID), "kubernetes.io~"+kind, v.Name)
	if v.ConfigMap != nil { // as kubelets do
		dir = m.dir(pod, kind, v.Name)
	}
	group := fsGroup(pod)
	if err := writeAtomic(dir, files, group); err != nil {
		return "", time.Time{}, err
	}
	return dir, refresh, nil
}

// Cleanup unmounts and removes every volume of a pod. It needs nothing but the
// UID and may be repeated.
func (m *Manager) Cleanup(uid string) error {
	m.tokens.forget(uid)
	m.made.forget(uid)
	dir := filepath.Join(m.PodDir(uid), "volumes")
	if err := unmountBeneath(m.PodDir(uid)); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(m.memory(uid))); err != nil {
		return fmt.Errorf("remove the volumes of pod %s: %w", uid, err)
	}
	return nil
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func isTrue(b *bool) bool { return b != nil && *b }
