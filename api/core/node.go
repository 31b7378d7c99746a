package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// Node declares v1 Node.
func Node() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "Node", Resource: "nodes", ShortNames: []string{"no"}, Storage: "minions", HasStatus: true, NoGeneration: true,
		Default: kind.Each(defaultNode),
		// An agent registers its node together with its status.
		PrepareCreate: kind.Each(dropNodeConfig),
		PrepareUpdate: kind.Pair(func(n, old *corev1.Node) {
			n.Status = *old.Status.DeepCopy()
			dropNodeConfig(n)
		}),
		PrepareStatus: func(obj, old kind.Object) {
			kind.KeepAllButStatus(obj, old)
			obj.(*corev1.Node).Status.Config = nil
		},
		Validate:       kind.Check(validateNode),
		ValidateUpdate: kind.CheckChange(validateNodeUpdate),
		ValidateStatus: kind.CheckChange(validateNodeUpdate),
		Fields: kind.FieldsOf(func(n *corev1.Node) fields.Set {
			return fields.Set{"spec.unschedulable": fmt.Sprint(n.Spec.Unschedulable)}
		}),
		Columns: append(columns.Named(
			columns.Text("Status", "Whether the node is ready and open to new pods."),
			columns.Text("Roles", "The node's roles."),
			columns.Age(),
			columns.Text("Version", "Version of the node's agent."),
		), columns.Wide(
			columns.Text("Internal-IP", "Its address inside the cluster."),
			columns.Text("External-IP", "Its address outside the cluster."),
			columns.Text("OS-Image", "Its operating system."),
			columns.Text("Kernel-Version", "Its kernel."),
			columns.Text("Container-Runtime", "What runs its containers."),
		)...),
		Row: kind.RowOf(nodeRow),
	}
}

// dropNodeConfig drops what configured kubelets through the API: nobody reads it
// any more.
func dropNodeConfig(n *corev1.Node) { n.Spec.ConfigSource, n.Status.Config = nil, nil }

func defaultNode(n *corev1.Node) {
	roundResources(n.Status.Capacity)
	roundResources(n.Status.Allocatable)
	if n.Status.Allocatable == nil && n.Status.Capacity != nil {
		n.Status.Allocatable = n.Status.Capacity.DeepCopy()
	}
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
		n.Spec.PodCIDRs = []string{n.Spec.PodCIDR}
	} else if n.Spec.PodCIDR == "" && len(n.Spec.PodCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
}

func nodeRow(n *corev1.Node, now time.Time) []any {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if status = "NotReady"; c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	info := n.Status.NodeInfo
	kernel := columns.Or(info.KernelVersion, columns.Unknown)
	if info.Architecture != "" {
		kernel += " (" + info.Architecture + ")"
	}
	return []any{n.Name, status, columns.Or(strings.Join(nodeRoles(n), ","), columns.None), columns.Created(n, now), info.KubeletVersion,
		nodeAddress(n, corev1.NodeInternalIP), nodeAddress(n, corev1.NodeExternalIP), columns.Or(info.OSImage, columns.Unknown),
		kernel, columns.Or(info.ContainerRuntimeVersion, columns.Unknown)}
}

// nodeRoles reads the roles from the labels node-role.kubernetes.io/<role> and
// kubernetes.io/role=<role>.
func nodeRoles(n *corev1.Node) []string {
	roles := map[string]bool{}
	for k, v := range n.Labels {
		if role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok && role != "" {
			roles[role] = true
		} else if k == "kubernetes.io/role" && v != "" {
			roles[v] = true
		}
	}
	return slices.Sorted(maps.Keys(roles))
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return columns.None
}
