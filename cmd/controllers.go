package cmd

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/controller"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/scheduler"
)

func (c *cluster) controllers() []engine.Controller {
	return controller.All(controller.Options{CA: c.control.ca.PEM, Signer: c.control.ca, Tokens: c.control.local.Tokens})
}

// controllerRules are the permissions that the controllers declare, each once.
func controllerRules(list []engine.Controller) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for _, c := range list {
		for _, r := range engine.Rules(c) {
			if !slices.ContainsFunc(out, func(x rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(x, r) }) {
				out = append(out, r)
			}
		}
	}
	return out
}

// debugCommand shows how knarr is built inside.
func debugCommand() *cobra.Command {
	c := &cobra.Command{Use: "debug", Short: "Look inside knarr"}
	c.AddCommand(&cobra.Command{
		Use: "controllers", Short: "Print what each controller reads and writes", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(c.OutOrStdout(), engine.Graph(controller.All(controller.Options{})))
			return err
		},
	})
	return c
}

// runControllers starts the controllers and the scheduler.
func (c *cluster) runControllers(ctx context.Context, g *errgroup.Group) {
	cm := c.control.local.As(auth.Component("system:kube-controller-manager"))
	rec := recorder(ctx, g, cm, "controllers", "", c.log)
	g.Go(func() error {
		return engine.Run(ctx, cm, rec, clock.RealClock{}, c.log, c.controllers())
	})
	sc := c.control.local.As(auth.Component("system:kube-scheduler"))
	s := scheduler.New(scheduler.Config{Client: sc, Recorder: recorder(ctx, g, sc, "default-scheduler", "", c.log), Clock: clock.RealClock{}, Log: c.log})
	g.Go(func() error { return s.Run(ctx) })
}
