// Package static reads the pods that a node runs from its own files: static pods
// (https://kubernetes.io/docs/tasks/configure-pod-container/static-pod). It knows
// files and pods alone; running and showing them is the agent's.
package static

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/api/core"
	"knarr.dev/knarr/api/kind"
)

// maxFile is the largest manifest that is read, in bytes.
const maxFile = 10 << 20

// Load reads the pods of a file, or of all files in a folder but those whose names
// begin with a dot. A manifest that cannot be used is an error, which names its file;
// the others are returned nevertheless, ordered by name. A path that does not exist
// has no pods.
func Load(path, node string, now time.Time) ([]*corev1.Pod, error) {
	files, err := list(path)
	if err != nil {
		return nil, err
	}
	var pods []*corev1.Pod
	var errs []error
	l := loader{node: node, kind: core.Pod(), now: now}
	seen := map[string]string{}
	for _, f := range files {
		p, err := l.load(f)
		if err == nil {
			if other := seen[p.Namespace+"/"+p.Name]; other != "" {
				err = fmt.Errorf("pod %s/%s is in %s too", p.Namespace, p.Name, other)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("static pod %s: %w", f, err))
			continue
		}
		seen[p.Namespace+"/"+p.Name] = f
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	return pods, errors.Join(errs...)
}

// list finds the manifests.
func list(path string) ([]string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("static pods: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("static pods: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		f := filepath.Join(path, e.Name())
		if info, err := os.Stat(f); err == nil && info.Mode().IsRegular() {
			out = append(out, f)
		}
	}
	return out, nil
}

type loader struct {
	node string
	kind *kind.Kind
	now  time.Time
}

func (l loader) load(file string) (*corev1.Pod, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	return l.Parse(file, b)
}

// Parse makes a manifest the pod that the node runs: bound to the node, named after
// it, with an UID that changes when node, file or content do, and defaults filled in.
func (l loader) Parse(file string, b []byte) (*corev1.Pod, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, errors.New("the file is empty")
	}
	p := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(b, p); err != nil {
		return nil, err
	}
	if p.APIVersion != "v1" || p.Kind != "Pod" {
		return nil, fmt.Errorf("%s %s is no v1 Pod", p.APIVersion, p.Kind)
	}
	if p.Name == "" {
		return nil, errors.New("metadata.name is missing")
	}
	if ref := apiObject(p); ref != "" {
		return nil, fmt.Errorf("%s: static pods may not refer to objects of the API", ref)
	}
	if p.UID == "" {
		canonical, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		h := md5.New() //nolint:gosec // an identity, not a secret
		fmt.Fprintf(h, "host:%s\nfile:%s\n%s", l.node, file, canonical)
		p.UID = types.UID(hex.EncodeToString(h.Sum(nil)))
	}
	p.Name = strings.ToLower(p.Name) + "-" + l.node
	if p.Namespace == "" {
		p.Namespace = corev1.NamespaceDefault
	}
	p.Spec.NodeName = l.node
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[podspec.AnnotationConfigSource] = podspec.SourceFile
	p.Annotations[podspec.AnnotationConfigHash] = string(p.UID)
	p.Annotations[podspec.AnnotationConfigSeen] = l.now.UTC().Format(time.RFC3339Nano)
	// Whatever becomes of the node, its own pods stay.
	p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	l.kind.Default(p)
	if errs := l.kind.Validate(p); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	p.Status = corev1.PodStatus{Phase: corev1.PodPending}
	return p, nil
}

// apiObject names the first field that refers to an object of the API, which a node
// without one could not read.
func apiObject(p *corev1.Pod) string {
	s := &p.Spec
	switch {
	case s.ServiceAccountName != "" || s.DeprecatedServiceAccount != "":
		return "spec.serviceAccountName"
	case len(s.ImagePullSecrets) > 0:
		return "spec.imagePullSecrets"
	case len(s.ResourceClaims) > 0:
		return "spec.resourceClaims"
	case len(s.EphemeralContainers) > 0:
		return "spec.ephemeralContainers"
	}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		at := fmt.Sprintf("spec.volumes[%d]", i)
		switch {
		case v.Secret != nil || v.ConfigMap != nil || v.PersistentVolumeClaim != nil || v.Ephemeral != nil || v.CSI != nil && v.CSI.NodePublishSecretRef != nil:
			return at
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if src.Secret != nil || src.ConfigMap != nil || src.ServiceAccountToken != nil || src.ClusterTrustBundle != nil || src.PodCertificate != nil {
					return at
				}
			}
		}
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			if len(list[i].EnvFrom) > 0 {
				return fmt.Sprintf("envFrom of container %s", list[i].Name)
			}
			for _, e := range list[i].Env {
				if e.ValueFrom != nil && (e.ValueFrom.SecretKeyRef != nil || e.ValueFrom.ConfigMapKeyRef != nil) {
					return fmt.Sprintf("env %s of container %s", e.Name, list[i].Name)
				}
			}
		}
	}
	return ""
}

// Mirror is the pod that shows a static pod in the API, owned by the node.
func Mirror(p *corev1.Pod, node *corev1.Node) *corev1.Pod {
	m := p.DeepCopy()
	m.UID, m.ResourceVersion, m.Status = "", "", corev1.PodStatus{}
	m.Annotations[podspec.AnnotationConfigMirror] = p.Annotations[podspec.AnnotationConfigHash]
	m.OwnerReferences = nil
	if node != nil {
		m.OwnerReferences = append(m.OwnerReferences, ownerOf(node))
	}
	return m
}

func ownerOf(node *corev1.Node) metav1.OwnerReference {
	controller := true
	return metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: &controller}
}

// Shows tells whether a pod of the API is the mirror of a static pod as it is now.
func Shows(mirror, p *corev1.Pod) bool {
	return mirror.DeletionTimestamp == nil && mirror.Annotations[podspec.AnnotationConfigMirror] == p.Annotations[podspec.AnnotationConfigHash]
}
