package api

import (
	"knarr.dev/knarr/api/admissionregistration"
	"knarr.dev/knarr/api/apiextensions"
	"knarr.dev/knarr/api/apiregistration"
	"knarr.dev/knarr/api/apps"
	"knarr.dev/knarr/api/autoscaling"
	"knarr.dev/knarr/api/batch"
	"knarr.dev/knarr/api/certificates"
	"knarr.dev/knarr/api/coordination"
	"knarr.dev/knarr/api/core"
	"knarr.dev/knarr/api/discovery"
	"knarr.dev/knarr/api/events"
	"knarr.dev/knarr/api/flowcontrol"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/api/networking"
	"knarr.dev/knarr/api/node"
	"knarr.dev/knarr/api/policy"
	"knarr.dev/knarr/api/rbac"
	"knarr.dev/knarr/api/resource"
	"knarr.dev/knarr/api/scheduling"
	"knarr.dev/knarr/api/storage"
	"knarr.dev/knarr/api/storagemigration"
)

func table() []*kind.Kind {
	return []*kind.Kind{
		core.ConfigMap(),
		core.Endpoints(),
		core.Event(),
		core.LimitRange(),
		core.Namespace(),
		core.Node(),
		core.PersistentVolumeClaim(),
		core.PersistentVolume(),
		core.Pod(),
		core.PodTemplate(),
		core.ReplicationController(),
		core.ResourceQuota(),
		core.Secret(),
		core.ServiceAccount(),
		core.Service(),

		apiextensions.CustomResourceDefinition(),
		apiregistration.APIService(),

		admissionregistration.MutatingAdmissionPolicy(),
		admissionregistration.MutatingAdmissionPolicyBinding(),
		admissionregistration.MutatingWebhookConfiguration(),
		admissionregistration.ValidatingAdmissionPolicy(),
		admissionregistration.ValidatingAdmissionPolicyBinding(),
		admissionregistration.ValidatingWebhookConfiguration(),
		admissionregistration.MutatingAdmissionPolicyV1beta1(),
		admissionregistration.MutatingAdmissionPolicyBindingV1beta1(),
		admissionregistration.ValidatingAdmissionPolicyV1beta1(),
		admissionregistration.ValidatingAdmissionPolicyBindingV1beta1(),

		apps.ControllerRevision(),
		apps.DaemonSet(),
		apps.Deployment(),
		apps.ReplicaSet(),
		apps.StatefulSet(),

		autoscaling.HorizontalPodAutoscaler(),
		autoscaling.HorizontalPodAutoscalerV1(),

		batch.CronJob(),
		batch.Job(),

		certificates.CertificateSigningRequest(),

		coordination.Lease(),
		discovery.EndpointSlice(),
		events.Event(),

		flowcontrol.FlowSchema(),
		flowcontrol.PriorityLevelConfiguration(),

		networking.Ingress(),
		networking.IngressClass(),
		networking.NetworkPolicy(),
		networking.IPAddress(),
		networking.ServiceCIDR(),

		node.RuntimeClass(),
		policy.PodDisruptionBudget(),

		rbac.ClusterRoleBinding(),
		rbac.ClusterRole(),
		rbac.RoleBinding(),
		rbac.Role(),

		resource.DeviceClass(),
		resource.ResourceClaim(),
		resource.ResourceClaimTemplate(),
		resource.ResourceSlice(),

		scheduling.PriorityClass(),

		storage.CSIDriver(),
		storage.CSINode(),
		storage.CSIStorageCapacity(),
		storage.StorageClass(),
		storage.VolumeAttachment(),
		storage.VolumeAttributesClass(),

		storagemigration.StorageVersionMigration(),
	}
}
