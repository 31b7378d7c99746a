package admission

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/apiserver/auth/node"
	"knarr.dev/knarr/apiserver/registry"
)

// nodeRestriction lets agents change only what belongs to their own node, and of
// their Node nothing that draws pods to it which others keep away.
func nodeRestriction(d Deps) registry.Admission {
	return registry.Admission{
		Name: "NodeRestriction",
		Validate: func(_ context.Context, a *registry.Attributes) error {
			if a.User == nil {
				return nil
			}
			name, isNode := node.Identify(a.User)
			if !isNode {
				return nil
			}
			r := restriction{d: d, a: a, node: name}
			if name == "" {
				return r.forbid("could not determine node from user %q", a.User.Username)
			}
			switch gr := a.Resource.GroupResource().String(); gr + "/" + a.Subresource {
			case "pods/":
				return r.pod()
			case "pods/status":
				return r.podStatus()
			case "pods/eviction":
				return r.eviction()
			case "nodes/", "nodes/status":
				return r.self()
			case "serviceaccounts/token":
				return r.token()
			case "leases.coordination.k8s.io/":
				return r.lease()
			case "csinodes.storage.k8s.io/":
				return r.csiNode()
			case "persistentvolumeclaims/status":
				return r.claim()
			case "certificatesigningrequests.certificates.k8s.io/":
				return r.request()
			}
			return nil
		},
	}
}

// restriction judges one write of a node's.
type restriction struct {
	d    Deps
	a    *registry.Attributes
	node string
}

func (r restriction) forbid(format string, args ...any) error {
	return apierrors.NewForbidden(r.a.Resource.GroupResource(), r.a.Name, fmt.Errorf(format, args...))
}

// pod: a node makes mirrors of the static pods that it runs, and deletes its own.
func (r restriction) pod() error {
	switch r.a.Operation {
	case registry.Create:
		return r.mirror(r.a.Object.(*corev1.Pod))
	case registry.Delete:
		p, ok := r.d.Lookup(pods, r.a.Namespace, r.a.Name).(*corev1.Pod)
		if ok && p.Spec.NodeName != r.node {
			return r.forbid("node %q can only delete pods with spec.nodeName set to itself", r.node)
		}
		return nil
	}
	return r.forbid("unexpected operation %q, node %q can only create and delete mirror pods", r.a.Operation, r.node)
}

func (r restriction) mirror(p *corev1.Pod) error {
	if _, ok := p.Annotations[corev1.MirrorPodAnnotationKey]; !ok {
		return r.forbid("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, r.node)
	}
	if p.Spec.NodeName != r.node {
		return r.forbid("node %q can only create pods with spec.nodeName set to itself", r.node)
	}
	if len(p.OwnerReferences) > 1 {
		return r.forbid("node %q can only create pods with a single owner reference set to itself", r.node)
	}
	for _, o := range p.OwnerReferences {
		if o.APIVersion != "v1" || o.Kind != "Node" || o.Name != r.node {
			return r.forbid("node %q can only create pods with an owner reference set to itself", r.node)
		}
		if o.Controller == nil || !*o.Controller {
			return r.forbid("node %q can only create pods with a controller owner reference set to itself", r.node)
		}
		if o.BlockOwnerDeletion != nil && *o.BlockOwnerDeletion {
			return r.forbid("node %q must not set blockOwnerDeletion on an owner reference", r.node)
		}
		if n, ok := r.d.Lookup(nodes, "", r.node).(*corev1.Node); !ok || n.UID != o.UID {
			return r.forbid("node %s UID mismatch: expected that of the node, got %s", r.node, o.UID)
		}
	}
	var named string
	node.EachReference(p, func(resource, _, _ string) {
		if named == "" {
			named = resource
		}
	})
	if named != "" {
		return r.forbid("node %q can not create pods that reference %s", r.node, named)
	}
	return nil
}

func (r restriction) podStatus() error {
	old, ok := r.a.Old.(*corev1.Pod)
	if !ok {
		return nil
	}
	if old.Spec.NodeName != r.node {
		return r.forbid("node %q can only update pod status for pods with spec.nodeName set to itself", r.node)
	}
	if !maps.Equal(old.Labels, r.a.Object.GetLabels()) {
		return r.forbid("node %q cannot update labels through pod status", r.node)
	}
	return nil
}

func (r restriction) eviction() error {
	name := r.a.Name
	if e, ok := r.a.Body.(*policyv1.Eviction); ok && name == "" {
		name = e.Name
	}
	p, ok := r.d.Lookup(pods, r.a.Namespace, name).(*corev1.Pod)
	if ok && p.Spec.NodeName != r.node {
		return r.forbid("node %s can only evict pods with spec.nodeName set to itself", r.node)
	}
	return nil
}

// self: the Node itself.
func (r restriction) self() error {
	n, ok := r.a.Object.(*corev1.Node)
	name := r.a.Name
	if ok {
		name = n.Name
	}
	if name != r.node {
		return r.forbid("node %q is not allowed to modify node %q", r.node, name)
	}
	if !ok {
		return nil
	}
	switch r.a.Operation {
	case registry.Create:
		if n.Spec.ConfigSource != nil {
			return r.forbid("node %q is not allowed to create pods with a non-nil configSource", r.node)
		}
		if bad := forbiddenLabels(n.Labels, nil); len(bad) > 0 {
			return r.forbid("node %q is not allowed to set the following labels: %s", r.node, strings.Join(bad, ", "))
		}
	case registry.Update:
		old := r.a.Old.(*corev1.Node)
		if n.Spec.ConfigSource != nil && !equality.Semantic.DeepEqual(n.Spec.ConfigSource, old.Spec.ConfigSource) {
			return r.forbid("node %q is not allowed to update configSource to a new non-nil configSource", r.node)
		}
		if !equality.Semantic.DeepEqual(n.Spec.Taints, old.Spec.Taints) {
			return r.forbid("node %q is not allowed to modify taints", r.node)
		}
		if bad := forbiddenLabels(n.Labels, old.Labels); len(bad) > 0 {
			return r.forbid("node %q is not allowed to modify labels: %s", r.node, strings.Join(bad, ", "))
		}
		if !equality.Semantic.DeepEqual(n.OwnerReferences, old.OwnerReferences) {
			return r.forbid("node %q is not allowed to modify ownerReferences", r.node)
		}
	}
	return nil
}

// ownLabels are those of Kubernetes' own domains that a node may set.
var ownLabels = []string{
	corev1.LabelHostname, corev1.LabelArchStable, corev1.LabelOSStable, corev1.LabelInstanceType, corev1.LabelInstanceTypeStable,
	corev1.LabelTopologyRegion, corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaRegion, corev1.LabelFailureDomainBetaZone,
	"beta.kubernetes.io/os", "beta.kubernetes.io/arch", corev1.LabelWindowsBuild,
}

// forbiddenLabels lists the changed labels that a node may not change.
func forbiddenLabels(next, old map[string]string) []string {
	var out []string
	check := func(key string) {
		domain, _, ok := strings.Cut(key, "/")
		if !ok {
			return
		}
		in := func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) }
		switch {
		case in("node-restriction.kubernetes.io"):
		case !in("kubernetes.io") && !in("k8s.io"), in("kubelet.kubernetes.io"), in("node.kubernetes.io"), slices.Contains(ownLabels, key):
			return
		}
		out = append(out, key)
	}
	for k, v := range next {
		if was, ok := old[k]; !ok || was != v {
			check(k)
		}
	}
	for k := range old {
		if _, ok := next[k]; !ok {
			check(k)
		}
	}
	slices.Sort(out)
	return out
}

// token: only for pods on the node, and bound to them.
func (r restriction) token() error {
	t, ok := r.a.Body.(*authenticationv1.TokenRequest)
	if !ok {
		return nil
	}
	ref := t.Spec.BoundObjectRef
	switch {
	case ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "":
		return r.forbid("node requested token not bound to a pod")
	case ref.UID == "":
		return r.forbid("node requested token with a pod binding without a uid")
	}
	p, ok := r.d.Lookup(pods, r.a.Namespace, ref.Name).(*corev1.Pod)
	switch {
	case !ok:
		return apierrors.NewNotFound(pods.GroupResource(), ref.Name)
	case p.UID != ref.UID:
		return r.forbid("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	case p.Spec.NodeName != r.node:
		return r.forbid("node requested token bound to a pod scheduled on a different node")
	}
	return nil
}

func (r restriction) lease() error {
	name, namespace := r.a.Name, r.a.Namespace
	if l, ok := r.a.Object.(*coordinationv1.Lease); ok {
		name, namespace = l.Name, l.Namespace
	}
	if namespace != corev1.NamespaceNodeLease {
		return r.forbid("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	if name != r.node {
		return r.forbid("can only access node lease with the same name as the requesting node")
	}
	return nil
}

func (r restriction) csiNode() error {
	name := r.a.Name
	if n, ok := r.a.Object.(*storagev1.CSINode); ok {
		name = n.Name
	}
	if name != r.node {
		return r.forbid("can only access CSINode with the same name as the requesting node")
	}
	return nil
}

// claim: a node reports how far it has grown a volume, nothing else.
func (r restriction) claim() error {
	old, ok := r.a.Old.(*corev1.PersistentVolumeClaim)
	if !ok {
		return nil
	}
	next := r.a.Object.(*corev1.PersistentVolumeClaim)
	strip := func(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
		c = c.DeepCopy()
		s := &c.Status
		s.Capacity, s.Conditions, s.AllocatedResources, s.AllocatedResourceStatuses = nil, nil, nil, nil
		s.CurrentVolumeAttributesClassName, s.ModifyVolumeStatus = nil, nil
		c.ManagedFields, c.ResourceVersion = nil, ""
		return c
	}
	if !equality.Semantic.DeepEqual(strip(old), strip(next)) {
		return r.forbid("node %q is not allowed to update fields other than status.quantity and status.conditions", r.node)
	}
	return nil
}

// request: a node asks for certificates of its own name only; who asks is in the
// request.
func (r restriction) request() error {
	c, ok := r.a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || r.a.Operation != registry.Create {
		return nil
	}
	switch c.Spec.SignerName {
	case certificatesv1.KubeletServingSignerName, certificatesv1.KubeAPIServerClientKubeletSignerName:
	default:
		return nil
	}
	if cn, err := commonName(c); err != nil || cn != r.a.User.Username {
		return r.forbid("can only create a node CSR with CN=%s", r.a.User.Username)
	}
	return nil
}
