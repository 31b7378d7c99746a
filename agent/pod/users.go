package pod

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/userns"
)

// users are the host's users as which a pod's processes run; nil: the same as within
// the pod.
func (d *Deps) users(pod *corev1.Pod) (*runtimeapi.UserNamespace, error) {
	if !userns.Wanted(pod) {
		return nil, nil
	}
	if d.Users == nil {
		return nil, errors.New("this node has no user IDs for pods with hostUsers: false")
	}
	r, err := d.Users.Hold(string(pod.UID))
	if err != nil {
		return nil, err
	}
	return r.Options(), nil
}

// checkUsers refuses a pod with a user namespace that its runtime cannot give.
func (d *Deps) checkUsers(ctx context.Context, pod *corev1.Pod, handler string) error {
	if !userns.Wanted(pod) {
		return nil
	}
	st, err := d.CRI.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask the runtime whether it supports user namespaces: %w", err)
	}
	for _, h := range st.RuntimeHandlers {
		if h.Name == handler && h.GetFeatures().GetUserNamespaces() {
			return nil
		}
	}
	if handler != "" {
		return fmt.Errorf("can't set `spec.hostUsers: false`, RuntimeClass handler %q does not support user namespaces", handler)
	}
	return errors.New("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
}

// mapOwners has mounts show the owners of their files as the pod's users.
func mapOwners(mounts []*runtimeapi.Mount, users *runtimeapi.UserNamespace) {
	for _, m := range mounts {
		if m.Image == nil {
			m.UidMappings, m.GidMappings = users.GetUids(), users.GetGids()
		}
	}
}

// release gives back what the node has set aside for a pod of which nothing runs.
func (d *Deps) release(ctx context.Context, uid string) error {
	var errs []error
	if d.Claims != nil {
		errs = append(errs, d.Claims.Release(ctx, uid))
	}
	if d.Users != nil {
		errs = append(errs, d.Users.Release(uid))
	}
	if d.Resources != nil {
		errs = append(errs, d.Resources.Release(uid))
	}
	return errors.Join(errs...)
}
