package core

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// ConfigMap declares v1 ConfigMap.
func ConfigMap() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "ConfigMap", Resource: "configmaps", ShortNames: []string{"cm"}, Namespaced: true, NoGeneration: true,
		Validate:       kind.Check(validateConfigMap),
		ValidateUpdate: kind.CheckChange(validateConfigMapUpdate),
		Columns:        columns.Named(columns.Text("Data", "Number of keys."), columns.Age()),
		Row: kind.RowOf(func(c *corev1.ConfigMap, now time.Time) []any {
			return []any{c.Name, int64(len(c.Data) + len(c.BinaryData)), columns.Created(c, now)}
		}),
	}
}

// Secret declares v1 Secret.
func Secret() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "Secret", Resource: "secrets", Namespaced: true, NoGeneration: true, SecretAtRest: true,
		Default:        kind.Each(defaultSecret),
		Validate:       kind.Check(validateSecret),
		ValidateUpdate: kind.CheckChange(validateSecretUpdate),
		Fields:         kind.FieldsOf(func(s *corev1.Secret) fields.Set { return fields.Set{"type": string(s.Type)} }),
		Columns:        columns.Named(columns.Text("Type", "What the secret is for."), columns.Text("Data", "Number of keys."), columns.Age()),
		Row: kind.RowOf(func(s *corev1.Secret, now time.Time) []any {
			return []any{s.Name, string(s.Type), int64(len(s.Data)), columns.Created(s, now)}
		}),
	}
}

// defaultSecret also folds the write-only stringData into data.
func defaultSecret(s *corev1.Secret) {
	orElse(&s.Type, corev1.SecretTypeOpaque)
	if len(s.StringData) > 0 && s.Data == nil {
		s.Data = map[string][]byte{}
	}
	for k, v := range s.StringData {
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
}

// ServiceAccount declares v1 ServiceAccount.
func ServiceAccount() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "ServiceAccount", Resource: "serviceaccounts", ShortNames: []string{"sa"}, Namespaced: true, NoGeneration: true,
		ValidName: validation.ValidateServiceAccountName,
		Validate:  kind.Check(validateServiceAccount),
	}
}

// Namespace declares v1 Namespace.
func Namespace() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "Namespace", Resource: "namespaces", Verbs: []string{"create", "delete", "get", "list", "patch", "update", "watch"}, ShortNames: []string{"ns"}, HasStatus: true, NoGeneration: true,
		ValidName:     validation.ValidateNamespaceName,
		Default:       kind.Each(defaultNamespace),
		PrepareCreate: kind.Each(prepareNamespace),
		PrepareUpdate: kind.Pair(func(n, old *corev1.Namespace) {
			o := old.DeepCopy()
			n.Spec.Finalizers, n.Status = o.Spec.Finalizers, o.Status
		}),
		Validate:       kind.Check(validateNamespace),
		ValidateUpdate: kind.CheckChange(validateNamespaceUpdate),
		ValidateStatus: kind.CheckChange(validateNamespaceStatus),
		Fields: kind.FieldsOf(func(n *corev1.Namespace) fields.Set {
			return fields.Set{"name": n.Name, "status.phase": string(n.Status.Phase)}
		}),
		Columns: columns.Named(columns.Text("Status", "Active, or Terminating while its objects are removed."), columns.Age()),
		Row: kind.RowOf(func(n *corev1.Namespace, now time.Time) []any {
			return []any{n.Name, string(n.Status.Phase), columns.Created(n, now)}
		}),
	}
}

func defaultNamespace(n *corev1.Namespace) {
	orElse(&n.Status.Phase, corev1.NamespaceActive)
	if n.Name != "" {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelMetadataName] = n.Name
	}
}

func prepareNamespace(n *corev1.Namespace) {
	n.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	for _, f := range n.Spec.Finalizers {
		if f == corev1.FinalizerKubernetes {
			return
		}
	}
	n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
}

// LimitRange declares v1 LimitRange.
func LimitRange() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "LimitRange", Resource: "limitranges", ShortNames: []string{"limits"}, Namespaced: true, NoGeneration: true,
		AllowCreateOnUpdate: true,
		Default:             kind.Each(defaultLimitRange),
		Validate:            kind.Check(validateLimitRange),
		Columns:             columns.Named(columns.CreatedAt()),
		Row: kind.RowOf(func(l *corev1.LimitRange, _ time.Time) []any {
			return []any{l.Name, l.CreationTimestamp.UTC().Format(time.RFC3339)}
		}),
	}
}

func defaultLimitRange(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		for _, r := range []corev1.ResourceList{item.Max, item.Min, item.Default, item.DefaultRequest, item.MaxLimitRequestRatio} {
			roundResources(r)
		}
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		if item.Default == nil {
			item.Default = corev1.ResourceList{}
		}
		if item.DefaultRequest == nil {
			item.DefaultRequest = corev1.ResourceList{}
		}
		fillResources(item.Default, item.Max)
		fillResources(item.DefaultRequest, item.Default)
		fillResources(item.DefaultRequest, item.Min)
	}
}

func fillResources(dst, src corev1.ResourceList) {
	for name, q := range src {
		if _, ok := dst[name]; !ok {
			dst[name] = q.DeepCopy()
		}
	}
}

// ResourceQuota declares v1 ResourceQuota.
func ResourceQuota() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "ResourceQuota", Resource: "resourcequotas", ShortNames: []string{"quota"}, Namespaced: true, HasStatus: true, NoGeneration: true,
		Default: kind.Each(func(q *corev1.ResourceQuota) {
			roundResources(q.Spec.Hard)
			roundResources(q.Status.Hard)
			roundResources(q.Status.Used)
		}),
		Validate:       kind.Check(validateResourceQuota),
		ValidateUpdate: kind.CheckChange(validateResourceQuotaUpdate),
		ValidateStatus: kind.CheckChange(validateResourceQuotaStatus),
		Columns: columns.Named(
			columns.Text("Request", "Requests in use, and what is granted."),
			columns.Text("Limit", "Limits in use, and what is granted."), columns.Age()),
		Row: kind.RowOf(quotaRow),
	}
}

// Event declares v1 Event.
func Event() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "Event", Resource: "events", ShortNames: []string{"ev"}, Namespaced: true, NoGeneration: true, AllowCreateOnUpdate: true,
		ValidName: check.PathSegment,
		Validate:  kind.Check(validateEvent),
		Fields:    kind.FieldsOf(eventFields),
		Columns:   eventColumns(),
		Row:       kind.RowOf(eventRow),
	}
}

func eventFields(e *corev1.Event) fields.Set {
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	return fields.Set{
		"involvedObject.kind":            e.InvolvedObject.Kind,
		"involvedObject.namespace":       e.InvolvedObject.Namespace,
		"involvedObject.name":            e.InvolvedObject.Name,
		"involvedObject.uid":             string(e.InvolvedObject.UID),
		"involvedObject.apiVersion":      e.InvolvedObject.APIVersion,
		"involvedObject.resourceVersion": e.InvolvedObject.ResourceVersion,
		"involvedObject.fieldPath":       e.InvolvedObject.FieldPath,
		"reason":                         e.Reason,
		"reportingComponent":             e.ReportingController,
		"source":                         source,
		"type":                           e.Type,
	}
}

func eventColumns() []columns.Column {
	wide := func(c columns.Column) columns.Column { c.Priority = 1; return c }
	name := wide(columns.Name())
	return []columns.Column{
		columns.Text("Last Seen", "Time since the event last happened."),
		columns.Text("Type", "Normal or Warning."),
		columns.Text("Reason", "Short word for what happened."),
		columns.Text("Object", "What it happened to."),
		wide(columns.Text("Subobject", "Part of the object, such as a container.")),
		wide(columns.Text("Source", "Who reported it, and where.")),
		columns.Text("Message", "What happened."),
		wide(columns.Text("First Seen", "Time since the event first happened.")),
		wide(columns.Text("Count", "How often it happened.")),
		name,
	}
}

func eventRow(e *corev1.Event, now time.Time) []any {
	first := columns.Since(e.FirstTimestamp, now)
	if e.FirstTimestamp.IsZero() {
		first = columns.SinceTime(e.EventTime.Time, now)
	}
	last := columns.Since(e.LastTimestamp, now)
	if e.LastTimestamp.IsZero() {
		last = first
	}
	count := e.Count
	if e.Series != nil {
		count = e.Series.Count
		last = columns.SinceTime(e.Series.LastObservedTime.Time, now)
	} else if count == 0 {
		count = 1
	}
	target := e.InvolvedObject.Name
	if e.InvolvedObject.Kind != "" {
		target = lower(e.InvolvedObject.Kind) + "/" + target
	}
	component, host := e.Source.Component, e.Source.Host
	if component == "" {
		component = e.ReportingController
	}
	if host == "" {
		host = e.ReportingInstance
	}
	source := component
	if host != "" {
		source = fmt.Sprintf("%s, %s", component, host)
	}
	return []any{last, e.Type, e.Reason, target, e.InvolvedObject.FieldPath, source, trim(e.Message), first, int64(count), e.Name}
}
