package usage

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// psi converts what the runtime measured; nil where its kernel does not tell.
func psi(p *runtimeapi.PsiStats) *stats.PSIStats {
	if p == nil || p.Full == nil || p.Some == nil {
		return nil
	}
	data := func(d *runtimeapi.PsiData) stats.PSIData {
		return stats.PSIData{Total: d.Total, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &stats.PSIStats{Full: data(p.Full), Some: data(p.Some)}
}

// inputOutput is nil for what says nothing but its time.
func inputOutput(u *runtimeapi.IoUsage) *stats.IOStats {
	p := psi(u.GetPsi())
	if p == nil {
		return nil
	}
	return &stats.IOStats{Time: at(u.Timestamp), PSI: p}
}

// machinePressure is where the kernel tells the pressure of the whole machine.
const machinePressure = "/proc/pressure"

// nodePressure adds what the folder dir tells of the machine. The files are missing
// where pressure is not counted.
func nodePressure(n *stats.NodeStats, dir string, now metav1.Time) {
	read := func(resource string) *stats.PSIStats {
		text, err := os.ReadFile(filepath.Join(dir, resource))
		if err != nil {
			return nil
		}
		return parsePressure(string(text))
	}
	if n.CPU != nil {
		n.CPU.PSI = read("cpu")
	}
	if n.Memory != nil {
		n.Memory.PSI = read("memory")
	}
	if p := read("io"); p != nil {
		n.IO = &stats.IOStats{Time: now, PSI: p}
	}
}

// parsePressure understands the kernel's two lines (Documentation/accounting/psi.rst);
// the times in them are microseconds. Nil for any other text.
func parsePressure(text string) *stats.PSIStats {
	out := &stats.PSIStats{}
	found := false
	for line := range strings.Lines(text) {
		var kind string
		var d stats.PSIData
		if _, err := fmt.Sscanf(line, "%s avg10=%f avg60=%f avg300=%f total=%d", &kind, &d.Avg10, &d.Avg60, &d.Avg300, &d.Total); err != nil {
			return nil
		}
		d.Total *= uint64(time.Microsecond)
		switch kind {
		case "some":
			out.Some, found = d, true
		case "full": // before Linux 5.13 there is none for CPUs
			out.Full = d
		}
	}
	if !found {
		return nil
	}
	return out
}
