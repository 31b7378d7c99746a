package registry

import (
	"context"
	"fmt"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/api/kind"
)

// Rollback notes on a deployment that it is to go back to a revision (0: the one
// before), together with annotations.
func (r *Registry) Rollback(ctx context.Context, q Request, revision int64, annotations map[string]string) error {
	q.patched = true
	_, err := r.modify(ctx, &q, func(old kind.Object) (kind.Object, error) {
		d, ok := old.DeepCopyObject().(*appsv1.Deployment)
		if !ok {
			return nil, fmt.Errorf("rollback of a %T", old)
		}
		for k, v := range annotations {
			metav1.SetMetaDataAnnotation(&d.ObjectMeta, k, v)
		}
		metav1.SetMetaDataAnnotation(&d.ObjectMeta, appsv1.DeprecatedRollbackTo, strconv.FormatInt(revision, 10))
		return d, nil
	})
	return err
}
