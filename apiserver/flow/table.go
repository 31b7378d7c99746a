package flow

import (
	"cmp"
	"math"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/watchcache"
)

// table is the configuration of one moment.
type table struct {
	stamp   int64
	schemas []schema // in the order in which they are asked
}

type schema struct {
	spec  *flowcontrolv1.FlowSchemaSpec
	class *Class
}

func (c *Controller) stamp() int64 { return c.schemas.Cache.Changes() + c.levels.Cache.Changes() }

// current returns the table of the objects as they are now.
func (c *Controller) current() *table {
	stamp := c.stamp()
	if t := c.table.Load(); t != nil && t.stamp >= stamp {
		return t
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.table.Load(); t != nil && t.stamp >= stamp {
		return t
	}
	t := c.build()
	t.stamp = stamp
	c.table.Store(t)
	return t
}

// build makes a table, and fits the levels to it; mu is held.
func (c *Controller) build() *table {
	levels := map[string]*flowcontrolv1.PriorityLevelConfiguration{}
	for _, l := range bootstrap.MandatoryPriorityLevelConfigurations {
		levels[l.Name] = l
	}
	c.levels.Cache.Snapshot().Ascend("", "", func(i *watchcache.Item) bool {
		l := i.Object.(*flowcontrolv1.PriorityLevelConfiguration)
		levels[l.Name] = l
		return true
	})
	c.arrange(levels)
	schemas := map[string]*flowcontrolv1.FlowSchema{}
	for _, s := range bootstrap.MandatoryFlowSchemas {
		schemas[s.Name] = s
	}
	c.schemas.Cache.Snapshot().Ascend("", "", func(i *watchcache.Item) bool {
		s := i.Object.(*flowcontrolv1.FlowSchema)
		schemas[s.Name] = s
		return true
	})
	t := &table{}
	for _, s := range schemas {
		l := levels[s.Spec.PriorityLevelConfiguration.Name]
		if l == nil {
			continue // dangling: its requests belong to a later one
		}
		class := &Class{Schema: s.Name, Level: l.Name, SchemaUID: s.UID, LevelUID: l.UID, level: c.names[l.Name], tally: c.metrics.of(s.Name, l.Name)}
		if d := s.Spec.DistinguisherMethod; d != nil {
			class.by = d.Type
		}
		t.schemas = append(t.schemas, schema{spec: &s.Spec, class: class})
	}
	slices.SortFunc(t.schemas, func(a, b schema) int {
		return cmp.Or(cmp.Compare(a.spec.MatchingPrecedence, b.spec.MatchingPrecedence), cmp.Compare(a.class.Schema, b.class.Schema))
	})
	return t
}

// arrange gives the levels their seats; mu is held.
func (c *Controller) arrange(config map[string]*flowcontrolv1.PriorityLevelConfiguration) {
	shares := 0
	for _, l := range config {
		shares += int(sharesOf(l))
	}
	c.seats.levels, c.seats.total, c.seats.reserved = nil, 0, 0
	for name, old := range c.names {
		if config[name] == nil && old.inUse == 0 && old.waiting == 0 {
			delete(c.names, name)
		} else if config[name] == nil { // it serves those that it has to the end
			old.nominal, old.keeps = 0, 0
			c.seats.levels = append(c.seats.levels, old)
			c.seats.reserved += old.inUse
		}
	}
	for name, p := range config {
		l := c.names[name]
		if l == nil {
			l = &level{name: name}
			c.names[name] = l
		}
		l.exempt = p.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt
		l.nominal = int(math.Ceil(float64(c.cfg.Seats) * float64(sharesOf(p)) / float64(max(1, shares))))
		c.seats.total += l.nominal
		l.fit(p)
		c.seats.levels = append(c.seats.levels, l)
		c.seats.reserved += max(l.inUse, l.keeps)
	}
	for _, l := range c.seats.levels {
		if l.most < 0 {
			l.most = c.seats.total
		}
		c.seats.dispatch(l)
	}
}

func sharesOf(p *flowcontrolv1.PriorityLevelConfiguration) int32 {
	switch {
	case p.Spec.Limited != nil && p.Spec.Limited.NominalConcurrencyShares != nil:
		return *p.Spec.Limited.NominalConcurrencyShares
	case p.Spec.Limited != nil:
		return 30
	case p.Spec.Exempt != nil && p.Spec.Exempt.NominalConcurrencyShares != nil:
		return *p.Spec.Exempt.NominalConcurrencyShares
	}
	return 0
}

// fit takes over a level's configuration; its nominal seats are set.
func (l *level) fit(p *flowcontrolv1.PriorityLevelConfiguration) {
	percent := func(v *int32) int {
		if v == nil {
			return 0
		}
		return int(math.Round(float64(l.nominal) * float64(*v) / 100))
	}
	lends := 0
	l.most = -1 // as many as there are
	queuing := (*flowcontrolv1.QueuingConfiguration)(nil)
	if lim := p.Spec.Limited; lim != nil {
		lends = percent(lim.LendablePercent)
		if lim.BorrowingLimitPercent != nil {
			l.most = l.nominal + percent(lim.BorrowingLimitPercent)
		}
		if lim.LimitResponse.Type == flowcontrolv1.LimitResponseTypeQueue {
			queuing = lim.LimitResponse.Queuing
		}
	} else if p.Spec.Exempt != nil {
		lends = percent(p.Spec.Exempt.LendablePercent)
	}
	l.keeps = l.nominal - lends
	want := 0
	if queuing != nil {
		want, l.hand, l.queueLimit = int(queuing.Queues), max(1, int(queuing.HandSize)), int(queuing.QueueLengthLimit)
	}
	// While somebody waits, the queues stay as they are.
	if l.waiting == 0 && len(l.queues) != want {
		l.queues = nil
		if want > 0 {
			l.queues = make([]queue, want)
		}
	}
}

// matches tells whether one of the schema's rules concerns the request.
func (s *schema) matches(a *auth.Action) bool {
	for i := range s.spec.Rules {
		r := &s.spec.Rules[i]
		if !slices.ContainsFunc(r.Subjects, func(sub flowcontrolv1.Subject) bool { return subjectMatches(&sub, a) }) {
			continue
		}
		if a.IsResource() {
			for j := range r.ResourceRules {
				if resourceMatches(&r.ResourceRules[j], a) {
					return true
				}
			}
			continue
		}
		for j := range r.NonResourceRules {
			if n := &r.NonResourceRules[j]; has(n.Verbs, a.Verb) && slices.ContainsFunc(n.NonResourceURLs, func(u string) bool { return pathMatches(u, a.Path) }) {
				return true
			}
		}
	}
	return false
}

func has(list []string, v string) bool {
	return len(list) == 1 && list[0] == "*" || slices.Contains(list, v)
}

func pathMatches(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(path, prefix)
	}
	return pattern == path
}

func subjectMatches(s *flowcontrolv1.Subject, a *auth.Action) bool {
	switch {
	case s.Group != nil:
		return s.Group.Name == "*" || slices.Contains(a.User.Groups, s.Group.Name)
	case s.User != nil:
		return s.User.Name == "*" || s.User.Name == a.User.Username
	case s.ServiceAccount != nil:
		rest, ok := strings.CutPrefix(a.User.Username, auth.UserServiceAccount)
		if !ok {
			return false
		}
		ns, name, _ := strings.Cut(rest, ":")
		return ns == s.ServiceAccount.Namespace && (s.ServiceAccount.Name == "*" || s.ServiceAccount.Name == name)
	}
	return false
}

func resourceMatches(r *flowcontrolv1.ResourcePolicyRule, a *auth.Action) bool {
	if !has(r.Verbs, a.Verb) || !has(r.APIGroups, a.Group) {
		return false
	}
	if a.Namespace == "" {
		if !r.ClusterScope {
			return false
		}
	} else if !has(r.Namespaces, a.Namespace) {
		return false
	}
	if a.Subresource == "" {
		return has(r.Resources, a.Resource)
	}
	return slices.ContainsFunc(r.Resources, func(x string) bool {
		if x == "*" {
			return true
		}
		res, sub, ok := strings.Cut(x, "/")
		return ok && res == a.Resource && sub == a.Subresource
	})
}
