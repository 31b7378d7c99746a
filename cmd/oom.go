package cmd

import (
	"log/slog"
	"os"
)

// spare has the kernel, when the machine is out of memory, end everything else before
// this process, as kubelets do: all pods would be lost with it, in the end.
func spare(log *slog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil {
		log.Debug("the kernel may end this process when memory is short", "error", err)
	}
}
