// Package core declares the kinds of the core group: pods and what surrounds
// them. What pods share with the templates of other groups is exported here:
// DefaultPodTemplate and ValidatePodTemplate.
package core

import (
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// Pod declares v1 Pod.
func Pod() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "Pod", Resource: "pods", ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true, HasStatus: true,
		Others:         podParts(),
		Default:        kind.Each(defaultPod),
		PrepareCreate:  kind.Each(preparePod),
		PrepareUpdate:  kind.Pair(preparePodUpdate),
		PrepareStatus:  kind.Pair(preparePodStatus),
		Validate:       kind.Check(validatePod),
		ValidateUpdate: kind.CheckChange(validatePodUpdate),
		ValidateStatus: kind.CheckChange(validatePodStatusUpdate),
		Fields:         kind.FieldsOf(podFields),
		Columns: append(columns.Named(
			columns.Text("Ready", "Ready containers of all."),
			columns.Text("Status", "What the pod's containers are doing, in one word."),
			columns.Text("Restarts", "How often containers were restarted, and when last."),
			columns.Age(),
		), columns.Wide(
			columns.Text("IP", "The pod's first address."),
			columns.Text("Node", "The node that runs the pod."),
			columns.Text("Nominated Node", "The node on which room is being made for the pod."),
			columns.Text("Readiness Gates", "True readiness gates of all."),
		)...),
		Row: kind.RowOf(podRow),
	}
}

func podFields(p *corev1.Pod) fields.Set {
	var ip string
	var ips []string
	for i := range p.Status.PodIPs {
		ips = append(ips, p.Status.PodIPs[i].IP)
	}
	if len(ips) > 0 {
		ip = ips[0]
	}
	return fields.Set{
		"spec.nodeName":            p.Spec.NodeName,
		"spec.restartPolicy":       string(p.Spec.RestartPolicy),
		"spec.schedulerName":       p.Spec.SchedulerName,
		"spec.serviceAccountName":  p.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(p.Spec.HostNetwork),
		"status.phase":             string(p.Status.Phase),
		"status.podIP":             ip,
		"status.podIPs":            strings.Join(ips, ","),
		"status.nominatedNodeName": p.Status.NominatedNodeName,
	}
}

// PodTemplate declares v1 PodTemplate.
func PodTemplate() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "PodTemplate", Resource: "podtemplates", Namespaced: true,
		Default:  kind.Each(func(t *corev1.PodTemplate) { DefaultPodTemplate(&t.Template) }),
		Validate: kind.Check(validatePodTemplateObject),
		Columns: columns.Named(
			columns.Text("Containers", "Names of the template's containers."),
			columns.Text("Images", "Images of the template's containers."),
			columns.Text("Pod Labels", "Labels of pods made from the template."),
		),
		Row: kind.RowOf(func(t *corev1.PodTemplate, _ time.Time) []any {
			names, images := columns.Images(t.Template.Spec.Containers)
			return []any{t.Name, names, images, columns.Labels(t.Template.Labels)}
		}),
	}
}
