package volumes

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/agent/fieldref"
)

const defaultMode = 0o644

func mode(item, def *int32) fs.FileMode {
	switch {
	case item != nil:
		return fs.FileMode(*item) & fs.ModePerm
	case def != nil:
		return fs.FileMode(*def) & fs.ModePerm
	}
	return defaultMode
}

// project chooses keys of an object's data as files. missing begins the message
// about a key that is not there.
func project(missing string, data map[string][]byte, items []corev1.KeyToPath, def *int32, optional bool) (map[string]file, error) {
	out := map[string]file{}
	if len(items) == 0 {
		for k, v := range data {
			out[k] = file{data: v, mode: mode(nil, def)}
		}
		return out, nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional {
				continue
			}
			return nil, fmt.Errorf("%s key: %s", missing, it.Key)
		}
		out[it.Path] = file{data: v, mode: mode(it.Mode, def)}
	}
	return out, nil
}

func (m *Manager) configMap(ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, def *int32, optional bool) (map[string]file, error) {
	cm, err := m.cfg.Objects.ConfigMap(ctx, pod.Namespace, name)
	if apierrors.IsNotFound(err) && optional {
		return map[string]file{}, nil
	}
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{}
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return project("configmap references non-existent config", data, items, def, optional)
}

func (m *Manager) secret(ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, def *int32, optional bool) (map[string]file, error) {
	s, err := m.cfg.Objects.Secret(ctx, pod.Namespace, name)
	if apierrors.IsNotFound(err) && optional {
		return map[string]file{}, nil
	}
	if err != nil {
		return nil, err
	}
	return project("references non-existent secret", s.Data, items, def, optional)
}

func (m *Manager) downward(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, def *int32) (map[string]file, error) {
	out := map[string]file{}
	for _, it := range items {
		var text string
		var err error
		switch {
		case it.FieldRef != nil:
			text, err = fieldref.Field(pod, it.FieldRef.FieldPath)
		case it.ResourceFieldRef != nil:
			text, err = fieldref.Resource(pod, it.ResourceFieldRef, "", m.cfg.Allocatable())
		}
		if err != nil {
			return nil, err
		}
		out[it.Path] = file{data: []byte(text), mode: mode(it.Mode, def)}
	}
	return out, nil
}

func (m *Manager) projected(ctx context.Context, pod *corev1.Pod, p *corev1.ProjectedVolumeSource) (map[string]file, time.Time, error) {
	out := map[string]file{}
	var refresh time.Time
	for _, s := range p.Sources {
		var files map[string]file
		var err error
		switch {
		case s.ConfigMap != nil:
			files, err = m.configMap(ctx, pod, s.ConfigMap.Name, s.ConfigMap.Items, p.DefaultMode, isTrue(s.ConfigMap.Optional))
		case s.Secret != nil:
			files, err = m.secret(ctx, pod, s.Secret.Name, s.Secret.Items, p.DefaultMode, isTrue(s.Secret.Optional))
		case s.DownwardAPI != nil:
			files, err = m.downward(pod, s.DownwardAPI.Items, p.DefaultMode)
		case s.ServiceAccountToken != nil:
			var t token
			t, err = m.tokens.get(ctx, pod, s.ServiceAccountToken)
			if refresh.IsZero() || t.refresh.Before(refresh) {
				refresh = t.refresh
			}
			files = map[string]file{s.ServiceAccountToken.Path: tokenFile(pod, t, p.DefaultMode)}
		default:
			err = fmt.Errorf("projected volume has a source that this node does not support")
		}
		if err != nil {
			return nil, time.Time{}, err
		}
		for k, f := range files {
			out[k] = f
		}
	}
	return out, refresh, nil
}

// tokenFile lets only the pod's user read a token: with an fsGroup its group
// too; when all containers run as one user that user owns the file.
func tokenFile(pod *corev1.Pod, t token, def *int32) file {
	f := file{data: []byte(t.value), mode: mode(nil, def)}
	if fsGroup(pod) != nil {
		f.mode = 0o600
		return f
	}
	var uid *int64
	if sc := pod.Spec.SecurityContext; sc != nil {
		uid = sc.RunAsUser
	}
	for i := range pod.Spec.Containers {
		own := uid
		if sc := pod.Spec.Containers[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
			own = sc.RunAsUser
		}
		if own == nil || i > 0 && (f.uid == nil || *f.uid != *own) {
			f.uid = nil
			return f
		}
		f.uid = own
	}
	if f.uid != nil {
		f.mode = 0o600
	}
	return f
}
