package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/env"
	"knarr.dev/knarr/agent/fieldref"
	"knarr.dev/knarr/agent/volumes"
	"knarr.dev/knarr/client"
)

func (d *Deps) handlerOf(ctx context.Context, class string) (string, error) {
	rc, err := client.Get[*nodev1.RuntimeClass](ctx, d.Client, client.Key{Resource: client.RuntimeClasses, Name: class})
	if err != nil {
		return "", err
	}
	return rc.Handler, nil
}

func expand(in []string, vars map[string]string) []string { return env.ExpandAll(in, vars) }

// environment computes a container's variables: as a map for expansion, and as
// the list for the runtime in a stable order. Sources in rising precedence:
// services, envFrom in order, env in order.
func (s *starting) environment(ctx context.Context) (map[string]string, []*runtimeapi.KeyValue, error) {
	vars := map[string]string{}
	var order []string
	set := func(name, value string) {
		if _, have := vars[name]; !have {
			order = append(order, name)
		}
		vars[name] = value
	}
	for _, from := range s.c.EnvFrom {
		data, err := s.envFrom(ctx, from)
		if err != nil {
			return nil, nil, err
		}
		for _, k := range sortedKeys(data) {
			set(from.Prefix+k, data[k])
		}
	}
	services := env.Services(s.services())
	lookup := func(n string) (string, bool) {
		if v, ok := vars[n]; ok {
			return v, true
		}
		v, ok := services[n]
		return v, ok
	}
	for _, e := range s.c.Env {
		value := ""
		switch {
		case e.Value != "":
			value = env.Expand(e.Value, lookup)
		case e.ValueFrom != nil:
			v, ok, err := s.valueFrom(ctx, e.ValueFrom)
			if err != nil {
				return nil, nil, err
			}
			if !ok {
				continue
			}
			value = v
		}
		set(e.Name, value)
	}
	for _, k := range sortedKeys(services) {
		if _, have := vars[k]; !have {
			set(k, services[k])
		}
	}
	list := make([]*runtimeapi.KeyValue, 0, len(order))
	for _, k := range order {
		list = append(list, &runtimeapi.KeyValue{Key: k, Value: []byte(vars[k])})
	}
	return vars, list, nil
}

// services are those whose variables the pod gets: those of its namespace unless
// it declines, and always the API's own.
func (s *starting) services() []*corev1.Service {
	links := s.pod.Spec.EnableServiceLinks == nil || *s.pod.Spec.EnableServiceLinks
	var out []*corev1.Service
	for _, svc := range s.d.Services("default") {
		if svc.Name == "kubernetes" {
			out = append(out, svc)
		}
	}
	if links {
		for _, svc := range s.d.Services(s.pod.Namespace) {
			if s.pod.Namespace == "default" && svc.Name == "kubernetes" {
				continue
			}
			out = append(out, svc)
		}
	}
	return out
}

func (s *starting) envFrom(ctx context.Context, from corev1.EnvFromSource) (map[string]string, error) {
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		cm, err := s.d.Objects.ConfigMap(ctx, s.pod.Namespace, from.ConfigMapRef.Name)
		if err != nil {
			if apierrors.IsNotFound(err) && isTrue(from.ConfigMapRef.Optional) {
				return data, nil
			}
			return nil, err
		}
		for k, v := range cm.Data {
			data[k] = v
		}
	case from.SecretRef != nil:
		sec, err := s.d.Objects.Secret(ctx, s.pod.Namespace, from.SecretRef.Name)
		if err != nil {
			if apierrors.IsNotFound(err) && isTrue(from.SecretRef.Optional) {
				return data, nil
			}
			return nil, err
		}
		for k, v := range sec.Data {
			data[k] = string(v)
		}
	}
	return data, nil
}

// valueFrom returns one variable's value; false leaves it out.
func (s *starting) valueFrom(ctx context.Context, src *corev1.EnvVarSource) (string, bool, error) {
	ns := s.pod.Namespace
	switch {
	case src.FieldRef != nil:
		v, err := fieldref.Field(s.pod, src.FieldRef.FieldPath)
		return v, err == nil, err
	case src.FileKeyRef != nil:
		return s.fromFile(src.FileKeyRef)
	case src.ResourceFieldRef != nil:
		v, err := fieldref.Resource(s.pod, src.ResourceFieldRef, s.c.Name, s.d.Allocatable())
		return v, err == nil, err
	case src.ConfigMapKeyRef != nil:
		r := src.ConfigMapKeyRef
		cm, err := s.d.Objects.ConfigMap(ctx, ns, r.Name)
		if err != nil {
			if apierrors.IsNotFound(err) && isTrue(r.Optional) {
				return "", false, nil
			}
			return "", false, err
		}
		v, ok := cm.Data[r.Key]
		if !ok && !isTrue(r.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", r.Key, ns, r.Name)
		}
		return v, ok, nil
	case src.SecretKeyRef != nil:
		r := src.SecretKeyRef
		sec, err := s.d.Objects.Secret(ctx, ns, r.Name)
		if err != nil {
			if apierrors.IsNotFound(err) && isTrue(r.Optional) {
				return "", false, nil
			}
			return "", false, err
		}
		v, ok := sec.Data[r.Key]
		if !ok && !isTrue(r.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", r.Key, ns, r.Name)
		}
		return string(v), ok, nil
	}
	return "", false, fmt.Errorf("an environment variable has a source that this node does not support")
}

// mounts lists what the runtime binds into the container.
func (s *starting) mounts(vars map[string]string) ([]*runtimeapi.Mount, error) {
	if len(s.c.VolumeDevices) > 0 {
		return nil, fmt.Errorf("volumeDevices of container %q: this node has no volumes that are block devices; use volumeMounts and volumeMode Filesystem", s.c.Name)
	}
	var out []*runtimeapi.Mount
	hosts := false
	for i, m := range s.c.VolumeMounts {
		host, ok := s.volumes[m.Name]
		v := volumeOf(s.pod, m.Name)
		if !ok || v == nil {
			return nil, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, s.c.Name)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = env.Expand(m.SubPathExpr, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
			if strings.Contains(sub, "$(") {
				return nil, fmt.Errorf("failed to expand subPathExpr %q of volume mount %q", m.SubPathExpr, m.Name)
			}
		}
		ref, isImage := volumes.ImageRef(host)
		if sub != "" && !isImage {
			var err error
			if host, err = subPath(host, sub, s.subPathOf(m.Name, i)); err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, s.c.Name, err)
			}
		}
		target := m.MountPath
		if !filepath.IsAbs(target) {
			target = "/" + target
		}
		hosts = hosts || target == "/etc/hosts"
		if isImage {
			out = append(out, &runtimeapi.Mount{ContainerPath: target, Readonly: true, ImageSubPath: sub,
				Image: &runtimeapi.ImageSpec{Image: ref, UserSpecifiedImage: v.Image.Reference}})
			continue
		}
		out = append(out, &runtimeapi.Mount{
			ContainerPath: target, HostPath: host, Readonly: m.ReadOnly || volumes.ReadOnly(v), Propagation: propagation(m.MountPropagation),
			RecursiveReadOnly: m.ReadOnly && m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled,
		})
	}
	if !hosts {
		path, err := s.d.writeHosts(s.pod, s.ips)
		if err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: path})
	}
	if s.c.TerminationMessagePath != "" {
		if err := os.MkdirAll(filepath.Dir(s.message), 0o750); err != nil {
			return nil, err
		}
		// Every user of the container may write its last words.
		f, err := os.OpenFile(s.message, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o666)
		if err != nil {
			return nil, err
		}
		if err := f.Chmod(0o666); err != nil {
			f.Close()
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{ContainerPath: s.c.TerminationMessagePath, HostPath: s.message})
	}
	return out, nil
}

func volumeOf(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Name == name {
			return v
		}
	}
	return nil
}

func propagation(p *corev1.MountPropagationMode) runtimeapi.MountPropagation {
	if p != nil {
		switch *p {
		case corev1.MountPropagationBidirectional:
			return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		case corev1.MountPropagationHostToContainer:
			return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}
	}
	return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
}

func isTrue(b *bool) bool { return b != nil && *b }
