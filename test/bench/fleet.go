package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const fleetNodes, fleetPods = 500, 5000

// fleet measures the memory of a fresh cluster that holds the nodes and the pods of
// a large one, which exist on paper only, and has listed 5,000 ConfigMaps.
func fleet(ctx context.Context, c *cluster) ([]row, error) {
	if err := c.down(); err != nil {
		return nil, err
	}
	if _, err := c.up(ctx); err != nil {
		return nil, err
	}
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "fleet"}}, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	nodeName := func(i int) string { return fmt.Sprintf("fake-%d", i%fleetNodes) }
	err := each(fleetNodes, func(i int) error {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{corev1.LabelHostname: nodeName(i)}}}
		n.Spec.Unschedulable = true
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
		_, err := c.client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	err = each(fleetPods, func(i int) error {
		p := c.pod(fmt.Sprintf("p-%d", i))
		p.Spec.NodeName = nodeName(i)
		_, err := c.client.CoreV1().Pods("fleet").Create(ctx, p, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	if _, err := lists(ctx, c); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("%d pods, %d nodes, after the lists", fleetPods, fleetNodes)
	pss, anon, err := memory(c.proc.Process.Pid)
	if err != nil {
		return nil, err
	}
	rows := []row{{what + ": memory at once, PSS, anonymous", fmt.Sprintf("%d MiB, %d MiB", pss, anon), ""}}
	// Until the last deletion is no longer kept for watches that resume.
	if err := sleep(ctx, 75*time.Second); err != nil {
		return nil, err
	}
	rest, err := c.rest(ctx, what, "", "<= 150 MiB")
	if err != nil {
		return nil, err
	}
	return append(rows, rest[1:]...), nil // the nodes that stay silent keep the controllers busy
}

// each calls do with 0 to n-1, 64 at a time, and returns the first error.
func each(n int, do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for range 64 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				if err := do(int(i)); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}
