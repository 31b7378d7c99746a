package cmd

import (
	"fmt"
	"time"

	"knarr.dev/knarr/agent/imagegc"
)

// ImageGCConfig is when images are removed, in the terms of a kubelet's configuration.
type ImageGCConfig struct {
	// High and Low are percent of the disk: from High in use on, images that no container
	// uses are removed until Low is. Nil: 85 and 80, of at
	// most 64 GiB.
	High *int `json:"imageGCHighThresholdPercent,omitempty"`
	Low  *int `json:"imageGCLowThresholdPercent,omitempty"`
	// MinAge is how long an image stays at least; empty: 2m. MaxAge is how long it stays
	// unused at most, however much is free; empty: for ever.
	MinAge string `json:"imageMinimumGCAge,omitempty"`
	MaxAge string `json:"imageMaximumGCAge,omitempty"`
}

func (c *ImageGCConfig) parse() (imagegc.Config, error) {
	out := imagegc.Default()
	if c.High != nil || c.Low != nil {
		out.Counted = 0
	}
	if c.High != nil {
		out.High = *c.High
	}
	if c.Low != nil {
		out.Low = *c.Low
	}
	for name, v := range map[string]struct {
		text string
		into *time.Duration
	}{"imageMinimumGCAge": {c.MinAge, &out.MinAge}, "imageMaximumGCAge": {c.MaxAge, &out.MaxAge}} {
		if v.text == "" {
			continue
		}
		d, err := time.ParseDuration(v.text)
		if err != nil {
			return out, fmt.Errorf("%s: %w: write a duration such as 2m or 168h", name, err)
		}
		*v.into = d
	}
	return out, out.Validate()
}
