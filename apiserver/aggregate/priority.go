package aggregate

import "k8s.io/apimachinery/pkg/runtime/schema"

// The priorities of the built-in groups, as Kubernetes has them; versions that are
// not here are ordered by their age.
var groupPriorities = map[string]int32{
	"": 18000, "apiregistration.k8s.io": 18000, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700, "authorization.k8s.io": 17600,
	"autoscaling": 17500, "batch": 17400, "certificates.k8s.io": 17300, "networking.k8s.io": 17200, "policy": 17100,
	"rbac.authorization.k8s.io": 17000, "storage.k8s.io": 16800, "apiextensions.k8s.io": 16700, "admissionregistration.k8s.io": 16700,
	"scheduling.k8s.io": 16600, "coordination.k8s.io": 16500, "node.k8s.io": 16300, "discovery.k8s.io": 16200,
	"flowcontrol.apiserver.k8s.io": 16100, "resource.k8s.io": 16080,
}

const (
	otherGroup     = 16000
	customGroup    = 1000
	customVersion  = 100
	stableVersion  = 15
	preferredAlike = 30 // of a second stable version
	betaVersion    = 12
	alphaVersion   = 9
)

func priorityOf(gv schema.GroupVersion, custom bool) (group, version int32) {
	if custom {
		return customGroup, customVersion
	}
	group, ok := groupPriorities[gv.Group]
	if !ok {
		group = otherGroup
	}
	switch {
	case gv.Group == "":
		version = 1
	case gv.Version == "v1":
		version = stableVersion
	case gv.Version == "v2":
		version = preferredAlike
	case len(gv.Version) > 3 && gv.Version[2] == 'b':
		version = betaVersion
	default:
		version = alphaVersion
	}
	return group, version
}
