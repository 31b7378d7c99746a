// Package pressure reads the kernel's pressure stall information
// (https://docs.kernel.org/accounting/psi.html): of the machine, and of control groups.
package pressure

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// Pressure is how long some tasks have waited for a resource, and how long all that had
// something to do. Before Linux 5.13 the latter is not told of CPUs.
type Pressure struct {
	Some, Full Stall
}

// Stall is one line of a pressure file: shares of the last 10, 60 and 300
// seconds in percent, and the whole time.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}

// Read reads one of the kernel's files. False where there is none: pressure may not be
// counted.
func Read(file string) (Pressure, bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Pressure{}, false
	}
	return parse(string(data))
}

// parse understands lines of the form
// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", the time in microseconds.
func parse(text string) (Pressure, bool) {
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
