// This module's path sorts before k8s.io: see translate.go.
module init.knarr.dev/translate

go 1.26.0

require k8s.io/kubectl v0.36.3
