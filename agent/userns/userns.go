// Package userns gives each pod with a user namespace a range of the host's users
// and groups of its own, so that no two pods' processes are the same user:
// https://kubernetes.io/docs/concepts/workloads/pods/user-namespaces.
//
// What a pod holds is written to a file in its directory, in the form that kubelets
// use, so that a restarted agent gives it to nobody else.
package userns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// DefaultPerPod is how many users a pod has unless the node has another number.
	DefaultPerPod = 1 << 16
	// file is the name, in a pod's directory, of the file with its range.
	file = "userns"
)

// Wanted tells whether a pod asks for a user namespace.
func Wanted(pod *corev1.Pod) bool {
	return pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers
}

// Range is a run of the host's user and group IDs.
type Range struct{ First, Count uint32 }

// Slots says which ranges there are: Pods of them, of PerPod IDs each, one after the
// other from First on.
type Slots struct {
	First, PerPod uint32
	Pods          int
}

// Validate finds what cannot work.
func (s Slots) Validate() error {
	switch {
	case s.PerPod == 0 || s.PerPod%DefaultPerPod != 0:
		return fmt.Errorf("a pod's user IDs must be a multiple of %d, not %d", DefaultPerPod, s.PerPod)
	case s.First < DefaultPerPod || s.First%DefaultPerPod != 0:
		return fmt.Errorf("the pods' first user ID must be a positive multiple of %d, not %d", DefaultPerPod, s.First)
	case s.Pods < 1:
		return errors.New("there is no range of user IDs for even one pod")
	case uint64(s.First)+uint64(s.PerPod)*uint64(s.Pods) > 1<<32:
		return fmt.Errorf("%d pods of %d user IDs from %d on exceed the kernel's 4294967296", s.Pods, s.PerPod, s.First)
	}
	return nil
}

// Holder gives ranges to pods. Make one with New.
type Holder struct {
	slots Slots
	dir   func(uid string) string

	mu   sync.Mutex
	held map[string]Range // by pod UID
	used map[uint32]string
}

// New returns a holder that knows what the pods of an earlier agent hold. root is the
// folder of the pods' directories.
func New(slots Slots, root string) (*Holder, error) {
	if err := slots.Validate(); err != nil {
		return nil, err
	}
	h := &Holder{slots: slots, dir: func(uid string) string { return filepath.Join(root, uid) }, held: map[string]Range{}, used: map[uint32]string{}}
	files, err := filepath.Glob(filepath.Join(root, "*", file))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		uid := filepath.Base(filepath.Dir(f))
		r, err := read(f)
		if err != nil {
			return nil, fmt.Errorf("user IDs of pod %s: %w: remove the file if the pod is gone", uid, err)
		}
		if owner, taken := h.used[r.First]; taken {
			return nil, fmt.Errorf("pods %s and %s both hold the user IDs from %d on: delete one of them", owner, uid, r.First)
		}
		h.take(uid, r)
	}
	return h, nil
}

func (h *Holder) take(uid string, r Range) { h.held[uid], h.used[r.First] = r, uid }

// Hold returns the pod's range, which is the same until Release.
func (h *Holder) Hold(uid string) (Range, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r, ok := h.held[uid]; ok {
		return r, nil
	}
	for i := range h.slots.Pods {
		r := Range{First: h.slots.First + uint32(i)*h.slots.PerPod, Count: h.slots.PerPod}
		if h.overlaps(r) {
			continue
		}
		if err := write(h.dir(uid), r); err != nil {
			return Range{}, fmt.Errorf("note the user IDs of pod %s: %w", uid, err)
		}
		h.take(uid, r)
		return r, nil
	}
	return Range{}, fmt.Errorf("all %d ranges of user IDs are held by pods of this node: enlarge its range, or delete pods with hostUsers: false", h.slots.Pods)
}

// overlaps looks at every range, for an earlier agent may have cut them differently.
func (h *Holder) overlaps(r Range) bool {
	for _, o := range h.held {
		if uint64(r.First) < uint64(o.First)+uint64(o.Count) && uint64(o.First) < uint64(r.First)+uint64(r.Count) {
			return true
		}
	}
	return false
}

// Release takes the pod's range back once nothing of it runs any more. It may be
// repeated.
func (h *Holder) Release(uid string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, ok := h.held[uid]
	if !ok {
		return nil
	}
	if err := os.Remove(filepath.Join(h.dir(uid), file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give back the user IDs of pod %s: %w", uid, err)
	}
	delete(h.held, uid)
	delete(h.used, r.First)
	return nil
}

// Options are the range as the runtime is told of it.
func (r Range) Options() *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: r.Mapping(), Gids: r.Mapping()}
}

// Mapping maps the IDs within the pod, from 0 on, to those of the host.
func (r Range) Mapping() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: r.First, ContainerId: 0, Length: r.Count}}
}

// mapping is a line of a user namespace's map; mappings the content of a pod's file.
type mapping struct {
	HostID      uint32 `json:"hostId"`
	ContainerID uint32 `json:"containerId"`
	Length      uint32 `json:"length"`
}

type mappings struct {
	UIDs []mapping `json:"uidMappings"`
	GIDs []mapping `json:"gidMappings"`
}

func read(path string) (Range, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Range{}, err
	}
	var m mappings
	if err := json.Unmarshal(b, &m); err != nil {
		return Range{}, fmt.Errorf("%s: %w", path, err)
	}
	if len(m.UIDs) != 1 || len(m.GIDs) != 1 || m.UIDs[0] != m.GIDs[0] || m.UIDs[0].ContainerID != 0 || m.UIDs[0].Length == 0 {
		return Range{}, fmt.Errorf("%s does not hold one range from 0 on, the same for users and groups", path)
	}
	return Range{First: m.UIDs[0].HostID, Count: m.UIDs[0].Length}, nil
}

func write(dir string, r Range) error {
	line := []mapping{{HostID: r.First, Length: r.Count}}
	b, err := json.Marshal(mappings{UIDs: line, GIDs: line})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+file)
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, file))
}
