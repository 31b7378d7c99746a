package deployment

import (
	"context"
	"fmt"
	"maps"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/client"
)

// rollback does what the old versions of the API ask for by spec.rollbackTo, which
// apps/v1 keeps in an annotation: the template and the annotations of a former
// revision come back. asked tells that there was such a wish; the deployment has
// been written then, and its event brings it again.
func (r *rollout) rollback(ctx context.Context) (asked bool, err error) {
	text, ok := r.d.Annotations[appsv1.DeprecatedRollbackTo]
	if !ok {
		return false, nil
	}
	next := r.d.DeepCopy()
	delete(next.Annotations, appsv1.DeprecatedRollbackTo)
	to, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		to = -1 // nobody's revision
	}
	missing := "Unable to find the revision to rollback to."
	if to == 0 {
		to, missing = r.lastRevision(), "Unable to find last revision."
	}
	eventType, reason, message := corev1.EventTypeWarning, "DeploymentRollbackRevisionNotFound", missing
	for _, rs := range r.all() {
		if to <= 0 || revision(rs.Annotations) != to {
			continue
		}
		if sameTemplate(&rs.Spec.Template, &r.d.Spec.Template) {
			reason, message = "DeploymentRollbackTemplateUnchanged", fmt.Sprintf("The rollback revision contains the same template as current deployment %q", r.d.Name)
			break
		}
		next.Spec.Template = *rs.Spec.Template.DeepCopy()
		next.Spec.Template.Labels = maps.Clone(withoutHash(next.Spec.Template.Labels))
		takeAnnotations(next, rs)
		eventType, reason, message = corev1.EventTypeNormal, "DeploymentRollback", fmt.Sprintf("Rolled back deployment %q to revision %d", r.d.Name, to)
		break
	}
	k := client.Key{Resource: client.Deployments, Namespace: next.Namespace, Name: next.Name}
	if _, err := r.env.Client.Update(ctx, k, next); err != nil {
		return true, fmt.Errorf("rolling back %s: %w", k, err)
	}
	r.env.Recorder.Event(r.d, eventType, reason, message)
	return true, nil
}

// lastRevision is the revision before the newest, or 0.
func (r *rollout) lastRevision() (last int64) {
	var newest int64
	for _, rs := range r.all() {
		switch rev := revision(rs.Annotations); {
		case rev >= newest:
			last, newest = newest, rev
		case rev > last:
			last = rev
		}
	}
	return last
}

// takeAnnotations gives a deployment the annotations of a replica set, but for those
// that do not go from one to the other.
func takeAnnotations(d *appsv1.Deployment, rs *appsv1.ReplicaSet) {
	own := map[string]string{}
	for k, v := range d.Annotations {
		if notCopied[k] {
			own[k] = v
		}
	}
	for k, v := range rs.Annotations {
		if !notCopied[k] {
			own[k] = v
		}
	}
	d.Annotations = own
}
