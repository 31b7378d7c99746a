// Command knarr is Kubernetes in one small binary.
package main

import (
	"os"

	"knarr.dev/knarr/cmd"
)

func main() { os.Exit(cmd.Main(os.Args)) }
