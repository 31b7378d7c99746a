package api

import "knarr.dev/knarr/api/kind"

func table() []*kind.Kind {
	ns := true
	all := []string{"all"}
	return []*kind.Kind{
		{Version: "v1", Kind: "ConfigMap", Resource: "configmaps", ShortNames: []string{"cm"}, Namespaced: ns, NoGeneration: true},
		{Version: "v1", Kind: "Endpoints", Resource: "endpoints", Singular: "endpoints", ShortNames: []string{"ep"}, Namespaced: ns, Storage: "services/endpoints", NoGeneration: true},
		{Version: "v1", Kind: "Event", Resource: "events", ShortNames: []string{"ev"}, Namespaced: ns, NoGeneration: true, AllowCreateOnUpdate: true},
		{Version: "v1", Kind: "LimitRange", Resource: "limitranges", ShortNames: []string{"limits"}, Namespaced: ns, NoGeneration: true},
		{Version: "v1", Kind: "Namespace", Resource: "namespaces", ShortNames: []string{"ns"}, HasStatus: true, NoGeneration: true},
		{Version: "v1", Kind: "Node", Resource: "nodes", ShortNames: []string{"no"}, Storage: "minions", HasStatus: true, NoGeneration: true},
		{Version: "v1", Kind: "PersistentVolumeClaim", Resource: "persistentvolumeclaims", ShortNames: []string{"pvc"}, Namespaced: ns, HasStatus: true, NoGeneration: true},
		{Version: "v1", Kind: "PersistentVolume", Resource: "persistentvolumes", ShortNames: []string{"pv"}, HasStatus: true, NoGeneration: true},
		{Version: "v1", Kind: "Pod", Resource: "pods", ShortNames: []string{"po"}, Categories: all, Namespaced: ns, HasStatus: true},
		{Version: "v1", Kind: "PodTemplate", Resource: "podtemplates", Namespaced: ns},
		{Version: "v1", Kind: "ReplicationController", Resource: "replicationcontrollers", ShortNames: []string{"rc"}, Categories: all, Namespaced: ns, Storage: "controllers", HasStatus: true},
		{Version: "v1", Kind: "ResourceQuota", Resource: "resourcequotas", ShortNames: []string{"quota"}, Namespaced: ns, HasStatus: true, NoGeneration: true},
		{Version: "v1", Kind: "Secret", Resource: "secrets", Namespaced: ns, NoGeneration: true, SecretAtRest: true},
		{Version: "v1", Kind: "ServiceAccount", Resource: "serviceaccounts", ShortNames: []string{"sa"}, Namespaced: ns, NoGeneration: true},
		{Version: "v1", Kind: "Service", Resource: "services", ShortNames: []string{"svc"}, Categories: all, Namespaced: ns, Storage: "services/specs", HasStatus: true, NoGeneration: true},

		{Group: "apps", Version: "v1", Kind: "ControllerRevision", Resource: "controllerrevisions", Namespaced: ns, NoGeneration: true},
		{Group: "apps", Version: "v1", Kind: "DaemonSet", Resource: "daemonsets", ShortNames: []string{"ds"}, Categories: all, Namespaced: ns, HasStatus: true},
		{Group: "apps", Version: "v1", Kind: "Deployment", Resource: "deployments", ShortNames: []string{"deploy"}, Categories: all, Namespaced: ns, HasStatus: true},
		{Group: "apps", Version: "v1", Kind: "ReplicaSet", Resource: "replicasets", ShortNames: []string{"rs"}, Categories: all, Namespaced: ns, HasStatus: true},
		{Group: "apps", Version: "v1", Kind: "StatefulSet", Resource: "statefulsets", ShortNames: []string{"sts"}, Categories: all, Namespaced: ns, HasStatus: true},

		{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Resource: "horizontalpodautoscalers", ShortNames: []string{"hpa"}, Categories: all, Namespaced: ns, HasStatus: true},

		{Group: "batch", Version: "v1", Kind: "CronJob", Resource: "cronjobs", ShortNames: []string{"cj"}, Categories: all, Namespaced: ns, HasStatus: true},
		{Group: "batch", Version: "v1", Kind: "Job", Resource: "jobs", Categories: all, Namespaced: ns, HasStatus: true},

		{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Resource: "leases", Namespaced: ns, NoGeneration: true, AllowCreateOnUpdate: true},
		{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Resource: "endpointslices", Namespaced: ns},

		{Group: "networking.k8s.io", Version: "v1", Kind: "Ingress", Resource: "ingresses", ShortNames: []string{"ing"}, Namespaced: ns, Storage: "ingress", HasStatus: true},
		{Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass", Resource: "ingressclasses"},
		{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Resource: "networkpolicies", ShortNames: []string{"netpol"}, Namespaced: ns},
		{Group: "networking.k8s.io", Version: "v1", Kind: "IPAddress", Resource: "ipaddresses", ShortNames: []string{"ip"}},
		{Group: "networking.k8s.io", Version: "v1", Kind: "ServiceCIDR", Resource: "servicecidrs", HasStatus: true},

		{Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass", Resource: "runtimeclasses", NoGeneration: true},
		{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Resource: "poddisruptionbudgets", ShortNames: []string{"pdb"}, Namespaced: ns, HasStatus: true},

		{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding", Resource: "clusterrolebindings", NoGeneration: true, AllowCreateOnUpdate: true},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole", Resource: "clusterroles", NoGeneration: true, AllowCreateOnUpdate: true},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding", Resource: "rolebindings", Namespaced: ns, NoGeneration: true, AllowCreateOnUpdate: true},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role", Resource: "roles", Namespaced: ns, NoGeneration: true, AllowCreateOnUpdate: true},

		{Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Resource: "priorityclasses", ShortNames: []string{"pc"}},

		{Group: "storage.k8s.io", Version: "v1", Kind: "CSIDriver", Resource: "csidrivers", NoGeneration: true},
		{Group: "storage.k8s.io", Version: "v1", Kind: "CSINode", Resource: "csinodes", NoGeneration: true},
		{Group: "storage.k8s.io", Version: "v1", Kind: "CSIStorageCapacity", Resource: "csistoragecapacities", Namespaced: ns, NoGeneration: true},
		{Group: "storage.k8s.io", Version: "v1", Kind: "StorageClass", Resource: "storageclasses", ShortNames: []string{"sc"}, NoGeneration: true},
		{Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttachment", Resource: "volumeattachments", HasStatus: true, NoGeneration: true},
		{Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttributesClass", Resource: "volumeattributesclasses", ShortNames: []string{"vac"}, NoGeneration: true},
	}
}
