package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// chart counts answers over time.
type chart struct {
	counts map[string][]int // per answer, in steps
}

const (
	step    = 50 * time.Millisecond
	failure = "failed"
)

func (c *chart) add(at time.Duration, answer string) {
	if c.counts == nil {
		c.counts = map[string][]int{}
	}
	i := int(at / step)
	list := c.counts[answer]
	for len(list) <= i {
		list = append(list, 0)
	}
	list[i]++
	c.counts[answer] = list
}

// colours of the answers in alphabetical order, and of failures.
var colours = []string{"#4c78a8", "#54a24b", "#b279a2", "#9d755d"}

// svg draws a stacked bar for each step: one colour an answer, failures in red.
func (c *chart) svg() string {
	const width, height, left, top = 900, 260, 60, 40
	var names []string
	steps, most := 1, 1
	for n, list := range c.counts {
		if n != failure {
			names = append(names, n)
		}
		steps = max(steps, len(list))
	}
	slices.Sort(names)
	names = append(names, failure)
	for i := range steps {
		sum := 0
		for _, list := range c.counts {
			if i < len(list) {
				sum += list[i]
			}
		}
		most = max(most, sum)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`, width+left+20, height+top+40)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`)
	bar := float64(width) / float64(steps)
	heights := make([]int, steps)
	for k, n := range names {
		colour := colours[k%len(colours)]
		total := 0
		if n == failure {
			colour = "#e45756"
		}
		for i, v := range c.counts[n] {
			total += v
			h := float64(v) / float64(most) * height
			y := float64(top+height) - float64(heights[i])/float64(most)*height - h
			heights[i] += v
			if v > 0 {
				fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.2f" height="%.1f" fill="%s"/>`, float64(left)+float64(i)*bar, y, bar, h, colour)
			}
		}
		fmt.Fprintf(&b, `<rect x="%d" y="12" width="12" height="12" fill="%s"/><text x="%d" y="23">%s: %d</text>`, left+k*200, colour, left+k*200+18, n, total)
	}
	perSecond := float64(most) / step.Seconds()
	fmt.Fprintf(&b, `<text x="4" y="%d">%.0f/s</text><text x="4" y="%d">0</text>`, top+10, perSecond, top+height)
	for s := 0; time.Duration(s)*time.Second <= time.Duration(steps)*step; s++ {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%d s</text>`, float64(left)+float64(s)*bar*float64(time.Second/step), top+height+20, s)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
