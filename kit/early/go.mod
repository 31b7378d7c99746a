// This module's path sorts before k8s.io: see early.go.
module init.knarr.dev/early

go 1.26.0

require k8s.io/kubectl v0.36.3
