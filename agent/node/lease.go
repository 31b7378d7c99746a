package node

import (
	"context"
	"encoding/json"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/client"
)

// renew extends the node's lease; the node controller holds a node for lost when
// its lease runs out.
func (r *Reporter) renew(ctx context.Context) error {
	n := r.Node()
	if n == nil {
		return fmt.Errorf("renew the lease of node %s: the node is not registered yet", r.cfg.Name)
	}
	k := client.Key{Resource: client.Leases, Namespace: corev1.NamespaceNodeLease, Name: r.cfg.Name}
	now := metav1.NewMicroTime(r.cfg.Clock.Now())
	// A patch, because others keep annotations on the lease.
	data, err := json.Marshal(map[string]any{"spec": map[string]any{
		"holderIdentity": r.cfg.Name, "leaseDurationSeconds": leaseSeconds, "renewTime": now,
	}})
	if err != nil {
		return fmt.Errorf("renew the lease of node %s: %w", r.cfg.Name, err)
	}
	_, err = r.cfg.Client.Patch(ctx, k, client.Patch{Type: types.MergePatchType, Data: data})
	if apierrors.IsNotFound(err) {
		lease := &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: r.cfg.Name, Namespace: corev1.NamespaceNodeLease,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &r.cfg.Name, LeaseDurationSeconds: ptr.To(int32(leaseSeconds)), RenewTime: &now},
		}
		_, err = r.cfg.Client.Create(ctx, k, lease)
	}
	if err != nil {
		return fmt.Errorf("renew the lease of node %s: %w", r.cfg.Name, err)
	}
	return nil
}
