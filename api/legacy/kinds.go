package legacy

import "knarr.dev/knarr/api/kind"

// Kinds returns the old versions of hubs, those whose present kind is among them.
func Kinds(hubs []*kind.Kind) []*kind.Kind {
	byName := map[string]*kind.Kind{}
	for _, h := range hubs {
		if h.Hub.Empty() {
			byName[h.Group+"/"+h.Kind] = h
		}
	}
	var out []*kind.Kind
	for _, v := range views {
		if hub := byName[v.hub]; hub != nil {
			for _, of := range v.of {
				out = append(out, of(hub))
			}
		}
	}
	return out
}

// plain makes the view of a version that has today's shape.
func plain(group, version string) func(*kind.Kind) *kind.Kind {
	return func(hub *kind.Kind) *kind.Kind { return same(group, version, hub) }
}

// views lists the old versions of each kind.
var views = []struct {
	hub string
	of  []func(*kind.Kind) *kind.Kind
}{
	{"apps/ControllerRevision", []func(*kind.Kind) *kind.Kind{plain(apps, v1beta2), plain(apps, v1beta1)}},
	{"apps/DaemonSet", []func(*kind.Kind) *kind.Kind{plain(apps, v1beta2), extensionsDaemonSet}},
	{"apps/Deployment", []func(*kind.Kind) *kind.Kind{plain(apps, v1beta2), firstDeployment, extensionsDeployment}},
	{"apps/ReplicaSet", []func(*kind.Kind) *kind.Kind{plain(apps, v1beta2), extensionsReplicaSet}},
	{"apps/StatefulSet", []func(*kind.Kind) *kind.Kind{plain(apps, v1beta2), statefulSet, petSet}},
	{"batch/CronJob", []func(*kind.Kind) *kind.Kind{plain("batch", v1beta1)}},
	{"policy/PodDisruptionBudget", []func(*kind.Kind) *kind.Kind{disruptionBudget}},
	{"networking.k8s.io/Ingress", []func(*kind.Kind) *kind.Kind{networkingIngress, extensionsIngress}},
	{"networking.k8s.io/IngressClass", []func(*kind.Kind) *kind.Kind{plain("networking.k8s.io", v1beta1)}},
	{"networking.k8s.io/NetworkPolicy", []func(*kind.Kind) *kind.Kind{plain(extensions, v1beta1)}},
	{"autoscaling/HorizontalPodAutoscaler", []func(*kind.Kind) *kind.Kind{autoscalerV2beta2, autoscalerV2beta1}},
	{"rbac.authorization.k8s.io/ClusterRole", []func(*kind.Kind) *kind.Kind{plain("rbac.authorization.k8s.io", v1beta1)}},
	{"rbac.authorization.k8s.io/ClusterRoleBinding", []func(*kind.Kind) *kind.Kind{plain("rbac.authorization.k8s.io", v1beta1)}},
	{"rbac.authorization.k8s.io/Role", []func(*kind.Kind) *kind.Kind{plain("rbac.authorization.k8s.io", v1beta1)}},
	{"rbac.authorization.k8s.io/RoleBinding", []func(*kind.Kind) *kind.Kind{plain("rbac.authorization.k8s.io", v1beta1)}},
	{"storage.k8s.io/CSIDriver", []func(*kind.Kind) *kind.Kind{plain("storage.k8s.io", v1beta1)}},
	{"storage.k8s.io/CSINode", []func(*kind.Kind) *kind.Kind{plain("storage.k8s.io", v1beta1)}},
	{"storage.k8s.io/CSIStorageCapacity", []func(*kind.Kind) *kind.Kind{plain("storage.k8s.io", v1beta1)}},
	{"storage.k8s.io/StorageClass", []func(*kind.Kind) *kind.Kind{plain("storage.k8s.io", v1beta1)}},
	{"storage.k8s.io/VolumeAttachment", []func(*kind.Kind) *kind.Kind{plain("storage.k8s.io", v1beta1)}},
	{"scheduling.k8s.io/PriorityClass", []func(*kind.Kind) *kind.Kind{plain("scheduling.k8s.io", v1beta1)}},
	{"coordination.k8s.io/Lease", []func(*kind.Kind) *kind.Kind{plain("coordination.k8s.io", v1beta1)}},
	{"admissionregistration.k8s.io/MutatingWebhookConfiguration", []func(*kind.Kind) *kind.Kind{mutatingWebhooks}},
	{"admissionregistration.k8s.io/ValidatingWebhookConfiguration", []func(*kind.Kind) *kind.Kind{validatingWebhooks}},
	{"apiextensions.k8s.io/CustomResourceDefinition", []func(*kind.Kind) *kind.Kind{definition}},
}
