package cmd

import (
	"context"

	"golang.org/x/sync/errgroup"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/controller"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/scheduler"
)

// runControllers starts the controllers and the scheduler.
func (c *cluster) runControllers(ctx context.Context, g *errgroup.Group) {
	cm := c.control.local.As(auth.Component("system:kube-controller-manager"))
	rec := c.recorder(ctx, g, cm, "controllers", "")
	g.Go(func() error {
		return engine.Run(ctx, cm, rec, clock.RealClock{}, c.log, controller.All(controller.Options{CA: c.control.ca.PEM}))
	})
	sc := c.control.local.As(auth.Component("system:kube-scheduler"))
	s := scheduler.New(scheduler.Config{Client: sc, Recorder: c.recorder(ctx, g, sc, "default-scheduler", ""), Clock: clock.RealClock{}, Log: c.log})
	g.Go(func() error { return s.Run(ctx) })
}
