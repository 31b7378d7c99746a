package cmd

import (
	"context"

	"golang.org/x/sync/errgroup"
)

func (c *cluster) runControllers(context.Context, *errgroup.Group) {}
