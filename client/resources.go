package client

import "k8s.io/apimachinery/pkg/runtime/schema"

// The resources that knarr's components work with.
var (
	Pods                   = core("pods")
	Nodes                  = core("nodes")
	Services               = core("services")
	Endpoints              = core("endpoints")
	Namespaces             = core("namespaces")
	ConfigMaps             = core("configmaps")
	Secrets                = core("secrets")
	ServiceAccounts        = core("serviceaccounts")
	EventObjects           = core("events")
	PersistentVolumes      = core("persistentvolumes")
	PersistentVolumeClaims = core("persistentvolumeclaims")
	ReplicationControllers = core("replicationcontrollers")
	LimitRanges            = core("limitranges")
	ResourceQuotas         = core("resourcequotas")

	Deployments          = Resource{Group: "apps", Version: "v1", Resource: "deployments"}
	ReplicaSets          = Resource{Group: "apps", Version: "v1", Resource: "replicasets"}
	StatefulSets         = Resource{Group: "apps", Version: "v1", Resource: "statefulsets"}
	DaemonSets           = Resource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	ControllerRevisions  = Resource{Group: "apps", Version: "v1", Resource: "controllerrevisions"}
	Jobs                 = Resource{Group: "batch", Version: "v1", Resource: "jobs"}
	CronJobs             = Resource{Group: "batch", Version: "v1", Resource: "cronjobs"}
	EndpointSlices       = Resource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
	Leases               = Resource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
	PriorityClasses      = Resource{Group: "scheduling.k8s.io", Version: "v1", Resource: "priorityclasses"}
	RuntimeClasses       = Resource{Group: "node.k8s.io", Version: "v1", Resource: "runtimeclasses"}
	PodDisruptionBudgets = Resource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}
)

func core(resource string) Resource {
	return schema.GroupVersionResource{Version: "v1", Resource: resource}
}
