package core

import (
	"path"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func (v *podValidator) checkVolumes() {
	for i := range v.spec.Volumes {
		vol, at := &v.spec.Volumes[i], v.at.Child("volumes").Index(i)
		switch {
		case vol.Name == "":
			v.add(field.Required(at.Child("name"), ""))
		default:
			v.add(check.DNSLabel(at.Child("name"), vol.Name)...)
			if v.volumes[vol.Name] != nil {
				v.add(field.Duplicate(at.Child("name"), vol.Name))
			}
		}
		v.volumes[vol.Name] = vol
		v.checkSource(at, &vol.VolumeSource)
	}
}

// sources lists the names of the sources that are set, as they are in JSON.
func sources(src any) []string {
	var out []string
	value := reflect.ValueOf(src)
	for i := range value.NumField() {
		if f := value.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
			name, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
			out = append(out, name)
		}
	}
	return out
}

func (v *podValidator) checkSource(at *field.Path, s *corev1.VolumeSource) {
	set := sources(*s)
	if i := slices.Index(set, "emptyDir"); i > 0 {
		// Kubernetes looks at emptyDir first: the others are the ones too many.
		set = slices.Insert(slices.Delete(set, i, i+1), 0, "emptyDir")
	}
	if len(set) == 0 {
		v.add(field.Required(at, "must specify a volume type"))
	}
	for i, name := range set {
		if i > 0 {
			v.add(field.Forbidden(at.Child(sourcePath(name)), "may not specify more than 1 volume type"))
		}
	}
	if len(set) > 0 {
		v.checkOneSource(at, firstSource(*s, set[0]))
	}
}

// sourcePath is the name of a source in errors: two of them differ from JSON's.
func sourcePath(name string) string {
	switch name {
	case "downwardAPI":
		return "downwarAPI"
	case "cephfs":
		return "cephFS"
	}
	return name
}

// firstSource is s with no other source than the named one: those too many are
// not looked into.
func firstSource(s corev1.VolumeSource, name string) *corev1.VolumeSource {
	value := reflect.ValueOf(&s).Elem()
	for i := range value.NumField() {
		if json, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ","); json != name {
			value.Field(i).SetZero()
		}
	}
	return &s
}

func (v *podValidator) checkOneSource(at *field.Path, s *corev1.VolumeSource) {
	if s.HostPath != nil {
		v.add(checkHostPath(at.Child("hostPath"), s.HostPath)...)
	}
	if e := s.EmptyDir; e != nil && e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
		v.add(field.Forbidden(at.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity"))
	}
	if c := s.ConfigMap; c != nil {
		at := at.Child("configMap")
		v.add(check.Required(at.Child("name"), c.Name)...)
		v.checkMode(at.Child("defaultMode"), c.DefaultMode)
		v.checkItems(at.Child("items"), c.Items)
	}
	if c := s.Secret; c != nil {
		at := at.Child("secret")
		v.add(check.Required(at.Child("secretName"), c.SecretName)...)
		v.checkMode(at.Child("defaultMode"), c.DefaultMode)
		v.checkItems(at.Child("items"), c.Items)
	}
	if d := s.DownwardAPI; d != nil {
		v.checkMode(at.Child("downwardAPI", "defaultMode"), d.DefaultMode)
		v.checkDownward(at.Child("downwardAPI", "items"), d.Items)
	}
	if p := s.Projected; p != nil {
		v.checkProjected(at.Child("projected"), p)
	}
	if c := s.PersistentVolumeClaim; c != nil {
		v.add(check.Required(at.Child("persistentVolumeClaim", "claimName"), c.ClaimName)...)
	}
	if e := s.Ephemeral; e != nil {
		at := at.Child("ephemeral", "volumeClaimTemplate")
		if e.VolumeClaimTemplate == nil {
			v.add(field.Required(at, ""))
		} else {
			v.add(ValidateClaimSpec(&e.VolumeClaimTemplate.Spec, at.Child("spec"))...)
		}
	}
	if c := s.CSI; c != nil {
		v.add(check.Required(at.Child("csi", "driver"), c.Driver)...)
	}
	if i := s.Image; i != nil {
		v.add(check.Required(at.Child("image", "reference"), i.Reference)...)
		v.add(check.OneOfOrEmpty(at.Child("image", "pullPolicy"), i.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	}
	if n := s.NFS; n != nil {
		v.add(check.Required(at.Child("nfs", "server"), n.Server)...)
		v.add(check.Required(at.Child("nfs", "path"), n.Path)...)
		if !path.IsAbs(n.Path) {
			v.add(field.Invalid(at.Child("nfs", "path"), n.Path, "must be an absolute path"))
		}
	}
	if f := s.FlexVolume; f != nil {
		v.add(check.Required(at.Child("flexVolume", "driver"), f.Driver)...)
	}
}

func checkHostPath(at *field.Path, h *corev1.HostPathVolumeSource) errorList {
	if h.Path == "" {
		return errorList{field.Required(at.Child("path"), "")}
	}
	errs := checkNoBacksteps(at.Child("path"), h.Path)
	if h.Type != nil {
		errs = append(errs, check.OneOfOrEmpty(at.Child("type"), *h.Type, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
			corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)...)
	}
	return errs
}

func checkNoBacksteps(at *field.Path, p string) errorList {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return errorList{field.Invalid(at, p, "must not contain '..'")}
		}
	}
	return nil
}

func (v *podValidator) checkRelative(at *field.Path, p string) {
	switch {
	case p == "":
		v.add(field.Required(at, ""))
		return
	case path.IsAbs(p):
		v.add(field.Invalid(at, p, "must be a relative path"))
	}
	v.add(checkNoBacksteps(at, p)...)
	if strings.HasPrefix(p, "..") && !strings.HasPrefix(p, "../") && p != ".." {
		v.add(field.Invalid(at, p, "must not start with '..'"))
	}
}

func (v *podValidator) checkMode(at *field.Path, mode *int32) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		v.add(field.Invalid(at, *mode, "must be a number between 0 and 0777 (octal), both inclusive"))
	}
}

func (v *podValidator) checkItems(at *field.Path, items []corev1.KeyToPath) {
	for i, it := range items {
		v.add(check.Required(at.Index(i).Child("key"), it.Key)...)
		v.checkRelative(at.Index(i).Child("path"), it.Path)
		v.checkMode(at.Index(i).Child("mode"), it.Mode)
	}
}

func (v *podValidator) checkDownward(at *field.Path, items []corev1.DownwardAPIVolumeFile) {
	for i, it := range items {
		at := at.Index(i)
		v.checkRelative(at.Child("path"), it.Path)
		switch {
		case it.FieldRef != nil:
			v.checkFieldRef(at.Child("fieldRef"), it.FieldRef, fileFields)
			if it.ResourceFieldRef != nil {
				v.add(field.Invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
			}
		case it.ResourceFieldRef != nil:
			v.checkResourceRef(at.Child("resourceFieldRef"), it.ResourceFieldRef, true)
		default:
			v.add(field.Required(at, "one of fieldRef and resourceFieldRef is required"))
		}
		v.checkMode(at.Child("mode"), it.Mode)
	}
}

func (v *podValidator) checkProjected(at *field.Path, p *corev1.ProjectedVolumeSource) {
	v.checkMode(at.Child("defaultMode"), p.DefaultMode)
	seen := map[string]bool{}
	for i := range p.Sources {
		src, at := &p.Sources[i], at.Child("sources").Index(i)
		for k, name := range sources(*src) {
			if k > 0 {
				v.add(field.Forbidden(at.Child(name), "may not specify more than 1 volume type"))
			}
		}
		var paths []string
		if s := src.Secret; s != nil {
			v.add(check.Required(at.Child("secret", "name"), s.Name)...)
			v.checkItems(at.Child("secret", "items"), s.Items)
			for _, it := range s.Items {
				paths = append(paths, it.Path)
			}
		}
		if s := src.ConfigMap; s != nil {
			v.add(check.Required(at.Child("configMap", "name"), s.Name)...)
			v.checkItems(at.Child("configMap", "items"), s.Items)
			for _, it := range s.Items {
				paths = append(paths, it.Path)
			}
		}
		if s := src.DownwardAPI; s != nil {
			v.checkDownward(at.Child("downwardAPI", "items"), s.Items)
			for _, it := range s.Items {
				paths = append(paths, it.Path)
			}
		}
		if s := src.ServiceAccountToken; s != nil {
			at := at.Child("serviceAccountToken")
			v.add(check.Required(at.Child("path"), s.Path)...)
			paths = append(paths, s.Path)
			if e := s.ExpirationSeconds; e != nil && *e < 600 {
				v.add(field.Invalid(at.Child("expirationSeconds"), *e, "may not specify a duration less than 10 minutes"))
			} else if e != nil && *e > 1<<32 {
				v.add(field.Invalid(at.Child("expirationSeconds"), *e, "may not specify a duration larger than 2^32 seconds"))
			}
		}
		for _, p := range paths {
			if p != "" && seen[p] {
				v.add(field.Invalid(at, p, "conflicting duplicate paths"))
			}
			seen[p] = true
		}
	}
}

func (v *podValidator) checkMounts(at *field.Path, c *corev1.Container) {
	paths := map[string]bool{}
	for i, m := range c.VolumeMounts {
		list := at.Child("volumeMounts")
		at := list.Index(i)
		v.add(check.Required(at.Child("name"), m.Name)...)
		if v.volumes[m.Name] == nil {
			v.add(field.NotFound(at.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			v.add(field.Required(at.Child("mountPath"), ""))
		} else if paths[m.MountPath] {
			v.add(field.Invalid(at.Child("mountPath"), m.MountPath, "must be unique"))
		}
		paths[m.MountPath] = true
		for name, sub := range map[string]string{"subPath": m.SubPath, "subPathExpr": m.SubPathExpr} {
			if sub != "" && path.IsAbs(sub) {
				v.add(field.Invalid(list.Child(name), sub, "must be a relative path"))
			}
			v.add(checkNoBacksteps(list.Child(name), sub)...)
		}
		for _, d := range c.VolumeDevices {
			if d.Name == m.Name {
				v.add(field.Invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices"))
				break
			}
		}
		for _, d := range c.VolumeDevices {
			if d.DevicePath == m.MountPath {
				v.add(field.Invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices"))
				break
			}
		}
		if m.SubPath != "" && m.SubPathExpr != "" {
			v.add(field.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
		}
		if p := m.MountPropagation; p != nil {
			v.add(check.Exactly(list.Child("mountPropagation"), *p, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)...)
			privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
			if *p == corev1.MountPropagationBidirectional && !privileged {
				v.add(field.Forbidden(list.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers"))
			}
		}
	}
	v.checkReadOnlyMounts(at.Child("volumeMounts"), c.VolumeMounts)
	v.checkDevices(at.Child("volumeDevices"), c)
}

func (v *podValidator) checkDevices(list *field.Path, c *corev1.Container) {
	names, paths := map[string]bool{}, map[string]bool{}
	for i, d := range c.VolumeDevices {
		at := list.Index(i)
		if names[d.Name] {
			v.add(field.Invalid(at.Child("name"), d.Name, "must be unique"))
		}
		if paths[d.DevicePath] {
			v.add(field.Invalid(at.Child("devicePath"), d.DevicePath, "must be unique"))
		}
		if len(checkNoBacksteps(at, d.DevicePath)) > 0 {
			v.add(field.Invalid(at.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')"))
		} else {
			paths[d.DevicePath] = true
		}
		if d.Name != "" {
			names[d.Name] = true
		}
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == d.Name }) {
			v.add(field.Invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts"))
		}
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == d.DevicePath }) {
			v.add(field.Invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts"))
		}
		v.add(check.Required(at.Child("name"), d.Name)...)
		v.add(check.Required(at.Child("devicePath"), d.DevicePath)...)
		if vol := v.volumes[d.Name]; vol == nil {
			v.add(field.NotFound(at.Child("name"), d.Name))
		} else if vol != nil && vol.PersistentVolumeClaim == nil && vol.Ephemeral == nil {
			v.add(field.Invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
		}
	}
}

// checkReadOnlyMounts checks recursiveReadOnly, which asks for a read-only mount
// that does not propagate.
func (v *podValidator) checkReadOnlyMounts(at *field.Path, mounts []corev1.VolumeMount) {
	for _, m := range mounts {
		r := m.RecursiveReadOnly
		if r == nil {
			continue
		}
		at := at.Child("recursiveReadOnly")
		if *r == corev1.RecursiveReadOnlyDisabled {
			continue
		}
		if *r == corev1.RecursiveReadOnlyEnabled || *r == corev1.RecursiveReadOnlyIfPossible {
			if !m.ReadOnly {
				v.add(field.Forbidden(at, "may only be specified when readOnly is true"))
			}
			if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
				v.add(field.Forbidden(at, "may only be specified when mountPropagation is None or not specified"))
			}
		}
		v.add(check.Exactly(at, *r, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible)...)
	}
}

func checkKeys(at *field.Path, keys map[string]int) (errs errorList, size int) {
	for k, n := range keys {
		if wrong := validation.IsConfigMapKey(k); len(wrong) > 0 {
			errs = append(errs, check.Each(at.Key(k), k, wrong)...)
		}
		size += n
	}
	return errs, size
}
