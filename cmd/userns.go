package cmd

import (
	"cmp"
	"fmt"
	"math"

	"knarr.dev/knarr/agent/userns"
)

// UserNamespaces says which of the host's users are for pods with hostUsers: false.
type UserNamespaces struct {
	// IDsPerPod is how many users a pod has, a multiple of 65536; 0: 65536.
	IDsPerPod int64 `json:"idsPerPod,omitempty"`
	// FirstID is the first pod's first user, a multiple of 65536; 0: 65536. The user
	// kubelet of /etc/subuid, if there is one, decides instead.
	FirstID int64 `json:"firstID,omitempty"`
	// Share keeps the Shares nodes of one machine apart: the first has share 0.
	Share  int `json:"share,omitempty"`
	Shares int `json:"shares,omitempty"`
}

// subUser is the user whose subordinate IDs are for pods, as kubelets have it.
const subUser = "kubelet"

// userSlots are the users for this node's pods; subuid and subgid are the system's
// files, empty to ignore them.
func (c *Config) userSlots(subuid, subgid string) (userns.Slots, error) {
	u := c.Node.UserNamespaces
	first, per := cmp.Or(u.FirstID, userns.DefaultPerPod), cmp.Or(u.IDsPerPod, userns.DefaultPerPod)
	if first < 0 || first > math.MaxUint32 || per < 0 || per > math.MaxUint32 || u.Share < 0 || u.Share > maxNodes {
		return userns.Slots{}, fmt.Errorf("firstID %d and idsPerPod %d must be user IDs of the kernel, 0 to %d", first, per, uint32(math.MaxUint32))
	}
	pods := c.Node.MaxPods
	if subuid != "" {
		r, found, err := userns.Subordinate(subUser, subuid, subgid)
		if err != nil {
			return userns.Slots{}, err
		}
		if found {
			first = int64(r.First)
			if pods = int(int64(r.Count)/per) / max(c.Nodes, u.Shares); pods < 1 {
				return userns.Slots{}, fmt.Errorf("%s gives user %s %d IDs, which is less than one pod's %d", subuid, subUser, r.Count, per)
			}
		}
	}
	first += int64(u.Share) * int64(pods) * per
	if first > math.MaxUint32 {
		return userns.Slots{}, fmt.Errorf("the user IDs of this machine do not suffice for so many nodes: lower maxPods or idsPerPod")
	}
	s := userns.Slots{First: uint32(first), PerPod: uint32(per), Pods: pods}
	return s, s.Validate()
}
