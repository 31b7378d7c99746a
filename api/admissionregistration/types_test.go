package admissionregistration_test

import (
	admv1 "k8s.io/api/admissionregistration/v1"

	"knarr.dev/knarr/api/kind"
)

func validatingConfig() kind.Object  { return &admv1.ValidatingWebhookConfiguration{} }
func mutatingConfig() kind.Object    { return &admv1.MutatingWebhookConfiguration{} }
func validatingPolicy() kind.Object  { return &admv1.ValidatingAdmissionPolicy{} }
func mutatingPolicy() kind.Object    { return &admv1.MutatingAdmissionPolicy{} }
func validatingBinding() kind.Object { return &admv1.ValidatingAdmissionPolicyBinding{} }
