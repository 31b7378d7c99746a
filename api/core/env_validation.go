package core

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

const onlyOneSource = "may not have more than one field specified at a time"

func (v *podValidator) checkEnv(at *field.Path, e *corev1.EnvVar) {
	if e.Name == "" {
		v.add(field.Required(at.Child("name"), ""))
	} else {
		v.add(check.Each(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))...)
	}
	from := e.ValueFrom
	if from == nil {
		return
	}
	at = at.Child("valueFrom")
	n := 0
	if r := from.FieldRef; r != nil {
		n++
		v.checkFieldRef(at.Child("fieldRef"), r, envFields)
	}
	if r := from.ResourceFieldRef; r != nil {
		n++
		v.checkResourceRef(at.Child("resourceFieldRef"), r, false)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		n++
		v.checkKey(at.Child("configMapKeyRef"), r.Name, r.Key)
	}
	if r := from.SecretKeyRef; r != nil {
		n++
		v.checkKey(at.Child("secretKeyRef"), r.Name, r.Key)
	}
	if r := from.FileKeyRef; r != nil {
		n++
		at := at.Child("fileKeyRef")
		v.add(check.Required(at.Child("key"), r.Key)...)
		v.add(check.Required(at.Child("volumeName"), r.VolumeName)...)
		v.checkRelative(at.Child("path"), r.Path)
		if volume, ok := v.volumes[r.VolumeName]; r.VolumeName != "" && !ok {
			v.add(field.NotFound(at.Child("volumeName"), r.VolumeName))
		} else if ok && volume.EmptyDir == nil {
			v.add(field.Invalid(at.Child("volumeName"), r.VolumeName, "referenced volume must be of type emptyDir"))
		}
	}
	switch {
	case e.Value != "" && n > 0:
		v.add(field.Invalid(at, "", "may not be specified when `value` is not empty"))
	case n == 0:
		v.add(field.Invalid(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case n > 1:
		v.add(field.Invalid(at, "", onlyOneSource))
	}
}

// checkEnvFrom checks the source at list[i]; that it has one kind is an error of
// the list.
func (v *podValidator) checkEnvFrom(list *field.Path, i int, e *corev1.EnvFromSource) {
	at := list.Index(i)
	if e.Prefix != "" {
		v.add(check.Each(at.Child("prefix"), e.Prefix, validation.IsRelaxedEnvVarName(e.Prefix))...)
	}
	n := 0
	if r := e.ConfigMapRef; r != nil {
		n++
		v.add(check.RequiredName(at.Child("configMapRef", "name"), r.Name)...)
	}
	if r := e.SecretRef; r != nil {
		n++
		v.add(check.RequiredName(at.Child("secretRef", "name"), r.Name)...)
	}
	switch n {
	case 0:
		v.add(field.Invalid(list, "", "must specify one of: `configMapRef` or `secretRef`"))
	case 2:
		v.add(field.Invalid(list, "", onlyOneSource))
	}
}

func (v *podValidator) checkKey(at *field.Path, name, key string) {
	v.add(check.Required(at.Child("name"), name)...)
	if key == "" {
		v.add(field.Required(at.Child("key"), ""))
	} else {
		v.add(check.Each(at.Child("key"), key, validation.IsConfigMapKey(key))...)
	}
}

// fieldLabels are the fields of a pod that can be named at all.
var fieldLabels = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid", "spec.hostNetwork", "spec.nodeName",
	"spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.nominatedNodeName", "status.phase", "status.podIP", "status.podIPs"}

// Fields of the pod that environment variables and files can show.
var (
	envFields  = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	fileFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
)

func (v *podValidator) checkFieldRef(at *field.Path, r *corev1.ObjectFieldSelector, known []string) {
	v.add(check.Required(at.Child("apiVersion"), r.APIVersion)...)
	if r.FieldPath == "" {
		v.add(field.Required(at.Child("fieldPath"), ""))
		return
	}
	// metadata.labels['key'] and metadata.annotations['key'] name one value.
	if base, sub, ok := strings.Cut(r.FieldPath, "['"); ok && strings.HasSuffix(sub, "']") {
		key := strings.TrimSuffix(sub, "']")
		switch base {
		case "metadata.annotations":
			key = strings.ToLower(key)
			fallthrough
		case "metadata.labels":
			v.add(check.Each(at, key, validation.IsQualifiedName(key))...)
		default:
			v.add(field.Invalid(at, r.FieldPath, "does not support subscript"))
		}
		return
	}
	if !slices.Contains(fieldLabels, r.FieldPath) {
		v.add(field.Invalid(at.Child("fieldPath"), r.FieldPath, "error converting fieldPath: field label not supported: "+r.FieldPath))
		return
	}
	v.add(check.OneOf(at.Child("fieldPath"), r.FieldPath, known...)...)
}

func (v *podValidator) checkResourceRef(at *field.Path, r *corev1.ResourceFieldSelector, file bool) {
	if file && r.ContainerName == "" {
		v.add(field.Required(at.Child("containerName"), ""))
	} else if r.Resource == "" {
		v.add(field.Required(at.Child("resource"), ""))
	} else if kind, name, _ := strings.Cut(r.Resource, "."); (kind != "limits" && kind != "requests") ||
		(name != "cpu" && name != "memory" && name != "ephemeral-storage" && !strings.HasPrefix(name, corev1.ResourceHugePagesPrefix)) {
		v.add(field.NotSupported(at.Child("resource"), r.Resource, []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}))
	}
}
