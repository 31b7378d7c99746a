package admission

import (
	"context"
	"fmt"
	"strings"
	"sync"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/pod-security-admission/admission"
	admissionapi "k8s.io/pod-security-admission/admission/api"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/metrics"
	"k8s.io/pod-security-admission/policy"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
)

// PodSecurity configures Pod Security admission; the zero value demands nothing
// of namespaces without labels and exempts nobody.
type PodSecurity struct {
	// Defaults hold for namespaces that do not say otherwise by their labels:
	// privileged, baseline or restricted; versions are latest or such as v1.36.
	Defaults struct {
		Enforce        string `json:"enforce,omitempty"`
		EnforceVersion string `json:"enforceVersion,omitempty"`
		Audit          string `json:"audit,omitempty"`
		AuditVersion   string `json:"auditVersion,omitempty"`
		Warn           string `json:"warn,omitempty"`
		WarnVersion    string `json:"warnVersion,omitempty"`
	} `json:"defaults,omitzero"`
	Exemptions struct {
		Usernames      []string `json:"usernames,omitempty"`
		Namespaces     []string `json:"namespaces,omitempty"`
		RuntimeClasses []string `json:"runtimeClasses,omitempty"`
	} `json:"exemptions,omitzero"`
}

func (c *PodSecurity) configuration() *admissionapi.PodSecurityConfiguration {
	or := func(v, other string) string {
		if v == "" {
			return other
		}
		return v
	}
	const free, latest = string(api.LevelPrivileged), api.VersionLatest
	d := &c.Defaults
	return &admissionapi.PodSecurityConfiguration{
		Defaults: admissionapi.PodSecurityDefaults{
			Enforce: or(d.Enforce, free), EnforceVersion: or(d.EnforceVersion, latest), Audit: or(d.Audit, free), AuditVersion: or(d.AuditVersion, latest),
			Warn: or(d.Warn, free), WarnVersion: or(d.WarnVersion, latest),
		},
		Exemptions: admissionapi.PodSecurityExemptions{Usernames: c.Exemptions.Usernames, Namespaces: c.Exemptions.Namespaces, RuntimeClasses: c.Exemptions.RuntimeClasses},
	}
}

// Validate finds levels and versions that do not exist.
func (c *PodSecurity) Validate() error {
	_, err := c.open(podSources{})
	return err
}

func (c *PodSecurity) open(src podSources) (*admission.Admission, error) {
	e, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, fmt.Errorf("pod security: %w", err)
	}
	a := &admission.Admission{Configuration: c.configuration(), Evaluator: e, Metrics: unrecorded{}, PodSpecExtractor: admission.DefaultPodSpecExtractor{},
		NamespaceGetter: src, PodLister: src}
	if err := a.CompleteConfiguration(); err != nil {
		return nil, fmt.Errorf("pod security: %w", err)
	}
	if err := a.ValidateConfiguration(); err != nil {
		return nil, fmt.Errorf("pod security: %w", err)
	}
	return a, nil
}

// podSecurity holds pods against the Pod Security Standards that the labels of
// their namespaces name. The standards are loaded when a namespace first has such
// a label.
func podSecurity(d Deps) registry.Admission {
	open := sync.OnceValues(func() (*admission.Admission, error) { return d.PodSecurity.open(podSources{d}) })
	extractor := admission.DefaultPodSpecExtractor{}
	demanding := d.PodSecurity.Defaults != (PodSecurity{}).Defaults
	return registry.Admission{
		Name: "PodSecurity",
		Validate: func(ctx context.Context, a *registry.Attributes) error {
			if a.Object == nil || a.User == nil {
				return nil
			}
			gr := a.Resource.GroupResource()
			switch {
			case gr == namespaces.GroupResource():
				if !demanding && !securityLabels(a.Object) && (a.Old == nil || !securityLabels(a.Old)) {
					return nil
				}
			case !extractor.HasPodSpec(gr), gr == pods.GroupResource() && a.Subresource != "" && a.Subresource != "ephemeralcontainers" && a.Subresource != "resize":
				return nil
			default:
				if ns := d.Lookup(namespaces, "", a.Namespace); !demanding && (ns == nil || !securityLabels(ns)) {
					return nil
				}
			}
			p, err := open()
			if err != nil {
				return apierrors.NewInternalError(err)
			}
			return verdictOf(a, p.Validate(ctx, record(a)))
		},
	}
}

func securityLabels(o kind.Object) bool {
	for k := range o.GetLabels() {
		if strings.HasPrefix(k, "pod-security.kubernetes.io/") {
			return true
		}
	}
	return false
}

func record(a *registry.Attributes) *api.AttributesRecord {
	r := &api.AttributesRecord{Name: a.Name, Namespace: a.Namespace, Kind: a.Resource.GVK(), Resource: a.Resource.GVR(), Subresource: a.Subresource,
		Operation: admissionv1.Operation(a.Operation), Object: a.Object, Username: a.User.Username}
	if a.Old != nil {
		r.OldObject = a.Old
	}
	return r
}

func verdictOf(a *registry.Attributes, r *admissionv1.AdmissionResponse) error {
	for _, w := range r.Warnings {
		if a.Warn != nil {
			a.Warn(w)
		}
	}
	for k, v := range r.AuditAnnotations {
		a.Audit("pod-security.kubernetes.io/"+k, v)
	}
	switch {
	case r.Allowed:
		return nil
	case r.Result != nil:
		return &apierrors.StatusError{ErrStatus: *r.Result}
	}
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, fmt.Errorf("Not allowed by PodSecurity"))
}

// podSources gives the library namespaces and pods from the caches.
type podSources struct{ d Deps }

// GetNamespace implements admission.NamespaceGetter.
func (s podSources) GetNamespace(_ context.Context, name string) (*corev1.Namespace, error) {
	if ns, ok := s.d.Lookup(namespaces, "", name).(*corev1.Namespace); ok {
		return ns, nil
	}
	return nil, apierrors.NewNotFound(namespaces.GroupResource(), name)
}

// ListPods implements admission.PodLister.
func (s podSources) ListPods(_ context.Context, namespace string) (out []*corev1.Pod, _ error) {
	s.d.Each(pods, namespace, func(o kind.Object) bool {
		out = append(out, o.(*corev1.Pod))
		return true
	})
	return out, nil
}

// unrecorded keeps no metrics.
type unrecorded struct{}

func (unrecorded) RecordEvaluation(metrics.Decision, api.LevelVersion, metrics.Mode, api.Attributes) {
}
func (unrecorded) RecordExemption(api.Attributes)   {}
func (unrecorded) RecordError(bool, api.Attributes) {}
