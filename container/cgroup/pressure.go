package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Pressure is how long tasks of a group have waited for a resource.
type Pressure struct {
	Some, Full Stall
}

// Stall is one line of a pressure file: shares of the last 10, 60 and 300
// seconds in percent, and the whole time.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}

// Pressure reads the group's pressure of the resource cpu, memory or io. False
// where the kernel does not tell.
func (g Group) Pressure(resource string) (Pressure, bool) {
	if g.v2() == "" {
		return Pressure{}, false
	}
	data, err := os.ReadFile(filepath.Join(g.v2(), resource+".pressure"))
	if err != nil {
		return Pressure{}, false
	}
	return parsePressure(string(data))
}

// parsePressure understands lines of the form
// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", the time in microseconds.
func parsePressure(text string) (Pressure, bool) {
	var p Pressure
	found := false
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var at *Stall
		switch f[0] {
		case "some":
			at = &p.Some
		case "full":
			at = &p.Full
		default:
			continue
		}
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return Pressure{}, false
			}
			switch key {
			case "avg10":
				at.Avg10 = n
			case "avg60":
				at.Avg60 = n
			case "avg300":
				at.Avg300 = n
			case "total":
				at.Total = time.Duration(n) * time.Microsecond
				found = true
			}
		}
	}
	return p, found
}
