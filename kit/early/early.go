// Package early does what must be done before most other packages are initialised: Go
// initialises packages in the order of their paths as far as their imports permit
// (https://go.dev/ref/spec#Program_initialization), so this package is of a module of
// its own, whose path sorts before k8s.io. Where that order is lost nothing breaks:
// processes start more slowly.
package early

import (
	"os"
	"runtime/debug"

	"k8s.io/kubectl/pkg/util/i18n"
)

// startGC lets the heap of a process that starts grow to five times what lives before it
// is collected. A command ends before that matters: four collections of a few
// megabytes took a quarter of its time. Servers set their own share (kit/lean).
const startGC = 400

func init() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(startGC)
	}
	_ = i18n.SetLoadTranslationsFunc(load) // too late: then they are loaded, which only takes time
}
