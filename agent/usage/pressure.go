package usage

import (
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"knarr.dev/knarr/kit/pressure"
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
		p, ok := pressure.Read(filepath.Join(dir, resource))
		if !ok {
			return nil
		}
		return &stats.PSIStats{Full: stall(p.Full), Some: stall(p.Some)}
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

func stall(s pressure.Stall) stats.PSIData {
	return stats.PSIData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}
