package container

import (
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/oci"
)

// users reads which users a pod's processes are on the host; nil: the same as in
// the pod. The CRI allows one range, for users and groups alike.
func users(o *runtimeapi.NamespaceOption) (*oci.Users, error) {
	u := o.GetUsernsOptions()
	if u == nil {
		return nil, nil
	}
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		return nil, nil
	case runtimeapi.NamespaceMode_POD:
	default:
		return nil, fmt.Errorf("%w: a user namespace of mode %s: use POD or NODE", errInvalid, u.GetMode())
	}
	uids, err := mapping("users", u.GetUids())
	if err != nil {
		return nil, err
	}
	gids, err := mapping("groups", u.GetGids())
	if err != nil {
		return nil, err
	}
	if *uids != *gids {
		return nil, fmt.Errorf("%w: a user namespace must map users and groups alike", errInvalid)
	}
	for kind, mode := range map[string]runtimeapi.NamespaceMode{"network": o.GetNetwork(), "IPC": o.GetIpc(), "PID": o.GetPid()} {
		if mode == runtimeapi.NamespaceMode_NODE {
			return nil, fmt.Errorf("%w: a pod with a user namespace cannot share the host's %s namespace", errInvalid, kind)
		}
	}
	return uids, nil
}

func mapping(of string, list []*runtimeapi.IDMapping) (*oci.Users, error) {
	if len(list) != 1 {
		return nil, fmt.Errorf("%w: a user namespace must map its %s by one range, not by %d", errInvalid, of, len(list))
	}
	if list[0].GetContainerId() != 0 || list[0].GetLength() == 0 {
		return nil, fmt.Errorf("%w: a user namespace must map its %s from 0 on", errInvalid, of)
	}
	return &oci.Users{HostID: list[0].GetHostId(), Size: list[0].GetLength()}, nil
}

// mapped tells whether a mount shows its files' owners as the pod has them.
func mapped(m *runtimeapi.Mount, pod *oci.Users) (bool, error) {
	if len(m.GetUidMappings()) == 0 && len(m.GetGidMappings()) == 0 {
		return false, nil
	}
	uids, err := mapping("users", m.GetUidMappings())
	if err != nil {
		return false, fmt.Errorf("mount %s: %w", m.GetContainerPath(), err)
	}
	gids, err := mapping("groups", m.GetGidMappings())
	if err != nil {
		return false, fmt.Errorf("mount %s: %w", m.GetContainerPath(), err)
	}
	if pod == nil || uids.HostID != pod.HostID || uids.Size != pod.Size || *uids != *gids {
		return false, fmt.Errorf("%w: mount %s maps other users than its pod", errInvalid, m.GetContainerPath())
	}
	return true, nil
}

// shifts tells whether this machine can shift the owners of files, as pods with
// user namespaces need it. It is tried once.
func (s *Server) shifts() bool {
	s.tryShift.Do(func() {
		err := s.launcher.TryUsers(s.life, s.layers.Dir())
		s.canShift = err == nil
		if err != nil {
			s.cfg.Log.Debug("user namespaces are not available to pods", "reason", err)
		}
	})
	return s.canShift
}
