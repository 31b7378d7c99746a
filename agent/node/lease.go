package node

import (
	"context"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
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
	// Others keep annotations on the lease and may write between reading and writing.
	return retry.RetryOnConflict(retry.DefaultRetry, func() error { return r.renewOnce(ctx, n, k, now) })
}

func (r *Reporter) renewOnce(ctx context.Context, n *corev1.Node, k client.Key, now metav1.MicroTime) error {
	have, err := client.Get[*coordinationv1.Lease](ctx, r.cfg.Client, k)
	if apierrors.IsNotFound(err) {
		lease := &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: r.cfg.Name, Namespace: corev1.NamespaceNodeLease,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &r.cfg.Name, LeaseDurationSeconds: ptr.To(int32(leaseSeconds)), RenewTime: &now},
		}
		if _, err := r.cfg.Client.Create(ctx, k, lease); err != nil {
			return fmt.Errorf("create the lease of node %s: %w", r.cfg.Name, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the lease of node %s: %w", r.cfg.Name, err)
	}
	next := have.DeepCopy()
	next.Spec.RenewTime = &now
	next.Spec.HolderIdentity = &r.cfg.Name
	next.Spec.LeaseDurationSeconds = ptr.To(int32(leaseSeconds))
	if _, err := r.cfg.Client.Update(ctx, k, next); err != nil {
		return fmt.Errorf("renew the lease of node %s: %w", r.cfg.Name, err)
	}
	return nil
}
