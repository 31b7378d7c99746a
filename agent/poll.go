package agent

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
)

// pollEvery is how often a runtime without events is looked at, as kubelets do.
const pollEvery = time.Second

// poll stands in for the events of a runtime that has none: it lists sandboxes and
// containers, two calls for the whole node, and refreshes the pods of which
// something differs from the time before. It ends when the runtime no longer
// answers, or with ctx.
func (p *pods) poll(ctx context.Context) error {
	p.deps.Log.Info("the container runtime sends no events; it is looked at every second")
	// First the sums, then a look at everything: what changes in between differs.
	before, err := p.glance(ctx)
	if err != nil {
		return err
	}
	p.relist()
	for p.pause(ctx, pollEvery) {
		now, err := p.glance(ctx)
		if err != nil {
			return err
		}
		for uid, a := range p.all() {
			if now[uid] != before[uid] {
				a.Refresh()
			}
		}
		before = now
	}
	return ctx.Err()
}

// glance sums each pod's sandboxes and containers up, by pod UID: equal sums mean
// that nothing changed. The runtime's order of containers carries no meaning, so
// the sum of one does not depend on the others.
func (p *pods) glance(ctx context.Context) (map[string]uint64, error) {
	began := p.deps.Clock.Now()
	defer func() { p.deps.Metrics.Listed(began, p.deps.Clock.Now()) }()
	boxes, err := p.deps.CRI.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list the runtime's sandboxes: %w", err)
	}
	containers, err := p.deps.CRI.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list the runtime's containers: %w", err)
	}
	sums := map[string]uint64{}
	add := func(uid, id string, state int32) {
		sums[uid] += hash(fmt.Sprintf("%s %d", id, state))
	}
	for _, b := range boxes.Items {
		add(b.Labels[podspec.LabelPodUID], b.Id, int32(b.State))
	}
	for _, c := range containers.Containers {
		add(c.Labels[podspec.LabelPodUID], c.Id, int32(c.State))
	}
	return sums, nil
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
