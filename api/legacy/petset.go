package legacy

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
)

// PetSet is apps/v1alpha1 PetSet: what became the StatefulSet in Kubernetes 1.5.
type PetSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              PetSetSpec   `json:"spec,omitempty"`
	Status            PetSetStatus `json:"status,omitempty"`
}

// PetSetSpec is what a PetSet wants.
type PetSetSpec struct {
	Replicas             *int32                         `json:"replicas,omitempty"`
	Selector             *metav1.LabelSelector          `json:"selector,omitempty"`
	Template             corev1.PodTemplateSpec         `json:"template"`
	VolumeClaimTemplates []corev1.PersistentVolumeClaim `json:"volumeClaimTemplates,omitempty"`
	ServiceName          string                         `json:"serviceName"`
}

// PetSetStatus is how far a PetSet is.
type PetSetStatus struct {
	ObservedGeneration *int64 `json:"observedGeneration,omitempty"`
	Replicas           int32  `json:"replicas"`
}

// PetSetList is a list of them.
type PetSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PetSet `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (p *PetSet) DeepCopyObject() runtime.Object {
	out := &PetSet{TypeMeta: p.TypeMeta, ObjectMeta: *p.ObjectMeta.DeepCopy(), Status: p.Status}
	// A PetSet's fields are some of a StatefulSet's, which can copy them.
	s := (&appsv1.StatefulSetSpec{Replicas: p.Spec.Replicas, Selector: p.Spec.Selector, Template: p.Spec.Template, VolumeClaimTemplates: p.Spec.VolumeClaimTemplates}).DeepCopy()
	out.Spec = PetSetSpec{Replicas: s.Replicas, Selector: s.Selector, Template: s.Template, VolumeClaimTemplates: s.VolumeClaimTemplates, ServiceName: p.Spec.ServiceName}
	if n := p.Status.ObservedGeneration; n != nil {
		v := *n
		out.Status.ObservedGeneration = &v
	}
	return out
}

// DeepCopyObject implements runtime.Object.
func (l *PetSetList) DeepCopyObject() runtime.Object {
	out := &PetSetList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopyObject().(*PetSet))
	}
	return out
}

// keptByPetSet are the fields that a PetSet does not have, but a client that reads
// and writes one must not lose.
const keptByPetSet = "legacy.knarr.dev/statefulset"

func petSet(hub *kind.Kind) *kind.Kind {
	gvk := schema.GroupVersionKind{Group: apps, Version: "v1alpha1", Kind: "PetSet"}
	return view(kind.Kind{
		Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Resource: "petsets",
		New:        func() kind.Object { return &PetSet{} },
		NewList:    func() runtime.Object { return &PetSetList{} },
		Deprecated: warning(gvk, hub.GVK(), "v1.5", "v1.5"),
	}, hub, func(old *PetSet, s *appsv1.StatefulSet) {
		restore(&s.ObjectMeta, keptByPetSet, func() any {
			return &petSetRest{&s.Spec.UpdateStrategy, &s.Spec.PodManagementPolicy, &s.Spec.RevisionHistoryLimit, &s.Spec.MinReadySeconds, &s.Spec.PersistentVolumeClaimRetentionPolicy, &s.Spec.Ordinals, &s.Status}
		})
		firstStatefulSet(s)
	}, func(s *appsv1.StatefulSet, old *PetSet) {
		save(&old.ObjectMeta, keptByPetSet, petSetRest{&s.Spec.UpdateStrategy, &s.Spec.PodManagementPolicy, &s.Spec.RevisionHistoryLimit, &s.Spec.MinReadySeconds, &s.Spec.PersistentVolumeClaimRetentionPolicy, &s.Spec.Ordinals, &s.Status})
	})
}

// petSetRest is what a StatefulSet has beside a PetSet's fields.
type petSetRest struct {
	UpdateStrategy                       *appsv1.StatefulSetUpdateStrategy                        `json:"updateStrategy"`
	PodManagementPolicy                  *appsv1.PodManagementPolicyType                          `json:"podManagementPolicy"`
	RevisionHistoryLimit                 **int32                                                  `json:"revisionHistoryLimit"`
	MinReadySeconds                      *int32                                                   `json:"minReadySeconds"`
	PersistentVolumeClaimRetentionPolicy **appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy `json:"persistentVolumeClaimRetentionPolicy"`
	Ordinals                             **appsv1.StatefulSetOrdinals                             `json:"ordinals"`
	Status                               *appsv1.StatefulSetStatus                                `json:"status"`
}
