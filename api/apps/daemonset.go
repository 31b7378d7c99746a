package apps

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"

	"knarr.dev/knarr/api/check"
)

// prepareDaemonSet clears the status and starts to count the template's changes.
// The count was a field of the oldest API and has been an annotation since.
func prepareDaemonSet(d *appsv1.DaemonSet) {
	d.Status = appsv1.DaemonSetStatus{}
	setTemplateGeneration(d, max(1, templateGeneration(d)))
}

// prepareDaemonSetUpdate keeps the status and counts a change of the template.
func prepareDaemonSetUpdate(d, old *appsv1.DaemonSet) {
	d.Status = *old.Status.DeepCopy()
	n := templateGeneration(old)
	if !check.Same(d.Spec.Template, old.Spec.Template) {
		n++
	}
	setTemplateGeneration(d, n)
}

// prepareDaemonSetStatus keeps all but metadata and status.
func prepareDaemonSetStatus(d, old *appsv1.DaemonSet) {
	d.Spec = *old.Spec.DeepCopy()
	setTemplateGeneration(d, templateGeneration(old))
}

func templateGeneration(d *appsv1.DaemonSet) int64 {
	n, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func setTemplateGeneration(d *appsv1.DaemonSet, n int64) {
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[appsv1.DeprecatedTemplateGeneration] = strconv.FormatInt(n, 10)
}
