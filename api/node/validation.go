package node

import (
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateRuntimeClass(c *nodev1.RuntimeClass) field.ErrorList {
	errs := check.Required(field.NewPath("handler"), c.Handler)
	if c.Handler != "" {
		errs = check.DNSLabel(field.NewPath("handler"), c.Handler)
	}
	if c.Overhead != nil {
		for name, q := range c.Overhead.PodFixed {
			errs = append(errs, check.Quantity(field.NewPath("overhead", "podFixed").Key(string(name)), q)...)
		}
	}
	if c.Scheduling != nil {
		errs = append(errs, check.Labels(field.NewPath("scheduling", "nodeSelector"), c.Scheduling.NodeSelector)...)
	}
	return errs
}

func validateRuntimeClassUpdate(c, old *nodev1.RuntimeClass) field.ErrorList {
	return append(validateRuntimeClass(c), check.Immutable(field.NewPath("handler"), c.Handler, old.Handler)...)
}
