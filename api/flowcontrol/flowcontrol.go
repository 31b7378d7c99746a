// Package flowcontrol declares how requests to the API share its capacity.
package flowcontrol

import (
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

const (
	group = "flowcontrol.apiserver.k8s.io"

	defaultPrecedence = 1000
	defaultShares     = 30
	defaultQueues     = 64
	defaultHandSize   = 8
	defaultQueueLimit = 50
)

// FlowSchema declares flowcontrol.apiserver.k8s.io/v1 FlowSchema.
func FlowSchema() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "FlowSchema", Resource: "flowschemas", HasStatus: true,
		Default: kind.Each(func(f *flowcontrolv1.FlowSchema) {
			if f.Spec.MatchingPrecedence == 0 {
				f.Spec.MatchingPrecedence = defaultPrecedence
			}
		}),
		Validate:       kind.Check(validateSchema),
		ValidateStatus: kind.CheckChange(validateSchemaStatus),
		Columns: columns.Named(
			columns.Text("PriorityLevel", "The priority level of its requests."),
			columns.Text("MatchingPrecedence", "The lowest matching number decides."),
			columns.Text("DistinguisherMethod", "What tells one flow from another."),
			columns.Age(),
			columns.Text("MissingPL", "Whether the priority level does not exist."),
		),
		Row: kind.RowOf(func(f *flowcontrolv1.FlowSchema, now time.Time) []any {
			by := columns.None
			if d := f.Spec.DistinguisherMethod; d != nil {
				by = string(d.Type)
			}
			missing := "?"
			for _, c := range f.Status.Conditions {
				if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
					missing = string(c.Status)
				}
			}
			return []any{f.Name, f.Spec.PriorityLevelConfiguration.Name, int64(f.Spec.MatchingPrecedence), by, columns.Created(f, now), missing}
		}),
	}
}

// PriorityLevelConfiguration declares flowcontrol.apiserver.k8s.io/v1
// PriorityLevelConfiguration.
func PriorityLevelConfiguration() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "PriorityLevelConfiguration", Resource: "prioritylevelconfigurations", HasStatus: true,
		Default:        kind.Each(defaultLevel),
		Validate:       kind.Check(validateLevel),
		ValidateStatus: kind.CheckChange(validateLevelStatus),
		Columns: columns.Named(
			columns.Text("Type", "Whether its requests are limited."),
			columns.Text("NominalConcurrencyShares", "Its share of the server's capacity."),
			columns.Text("Queues", "How many queues it has."),
			columns.Text("HandSize", "How many queues a flow may use."),
			columns.Text("QueueLengthLimit", "How many requests a queue holds."),
			columns.Age(),
		),
		Row: kind.RowOf(func(p *flowcontrolv1.PriorityLevelConfiguration, now time.Time) []any {
			shares, queues, hand, limit := any(columns.None), any(columns.None), any(columns.None), any(columns.None)
			if l := p.Spec.Limited; l != nil {
				shares = int64(columns.Deref(l.NominalConcurrencyShares, 0))
				if q := l.LimitResponse.Queuing; q != nil {
					queues, hand, limit = int64(q.Queues), int64(q.HandSize), int64(q.QueueLengthLimit)
				}
			} else if e := p.Spec.Exempt; e != nil && e.NominalConcurrencyShares != nil {
				shares = int64(*e.NominalConcurrencyShares)
			}
			return []any{p.Name, string(p.Spec.Type), shares, queues, hand, limit, columns.Created(p, now)}
		}),
	}
}

func defaultLevel(p *flowcontrolv1.PriorityLevelConfiguration) {
	number := func(at **int32, n int32) {
		if *at == nil {
			*at = &n
		}
	}
	if p.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt {
		if p.Spec.Exempt == nil {
			p.Spec.Exempt = &flowcontrolv1.ExemptPriorityLevelConfiguration{}
		}
		number(&p.Spec.Exempt.NominalConcurrencyShares, 0)
		number(&p.Spec.Exempt.LendablePercent, 0)
	}
	l := p.Spec.Limited
	if l == nil {
		return
	}
	number(&l.NominalConcurrencyShares, defaultShares)
	number(&l.LendablePercent, 0)
	if q := l.LimitResponse.Queuing; q != nil {
		for at, n := range map[*int32]int32{&q.Queues: defaultQueues, &q.HandSize: defaultHandSize, &q.QueueLengthLimit: defaultQueueLimit} {
			if *at == 0 {
				*at = n
			}
		}
	}
}
