// Package controller lists the controllers. Adding one is its folder and one
// line here.
package controller

import (
	"knarr.dev/knarr/controller/bootstraptokens"
	"knarr.dev/knarr/controller/certificates"
	"knarr.dev/knarr/controller/deployment"
	"knarr.dev/knarr/controller/endpointslice"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/controller/garbagecollector"
	"knarr.dev/knarr/controller/namespace"
	"knarr.dev/knarr/controller/nodelifecycle"
	"knarr.dev/knarr/controller/podgc"
	"knarr.dev/knarr/controller/replicaset"
	"knarr.dev/knarr/controller/resourcequota"
	"knarr.dev/knarr/controller/roleaggregation"
	"knarr.dev/knarr/controller/rootca"
	"knarr.dev/knarr/controller/satokens"
	"knarr.dev/knarr/controller/serviceaccount"
	"knarr.dev/knarr/controller/serviceaddresses"
	"knarr.dev/knarr/controller/storagemigration"
	"knarr.dev/knarr/controller/storageprotection"
)

// Options are what controllers cannot read from the API.
type Options struct {
	// CA is the PEM bundle that pods trust.
	CA []byte
	// Signer signs approved requests for certificates; nil: nobody does.
	Signer certificates.Authority
	// Tokens signs what the secrets of service accounts keep; nil: nobody does.
	Tokens satokens.Issuer
	// EndedPods is how many ended pods may stay; 0: podgc.DefaultThreshold.
	EndedPods int
}

// All returns the controllers in the order in which they are shown.
func All(o Options) []engine.Controller {
	if o.EndedPods == 0 {
		o.EndedPods = podgc.DefaultThreshold
	}
	list := []engine.Controller{
		namespace.New(),
		serviceaccount.New(),
		rootca.New(o.CA),
		roleaggregation.New(),
		deployment.New(),
		replicaset.New(),
		replicaset.NewReplication(),
		endpointslice.New(),
		endpointslice.NewEndpoints(),
		endpointslice.NewMirroring(),
		nodelifecycle.New(),
		nodelifecycle.NewEviction(),
		podgc.New(o.EndedPods),
		resourcequota.New(),
		storageprotection.NewClaims(),
		storageprotection.NewVolumes(),
		storageprotection.NewClasses(),
		garbagecollector.New(),
		certificates.NewApproving(),
		certificates.NewCleaner(),
		bootstraptokens.New(),
		bootstraptokens.NewSigning(),
		serviceaddresses.NewRanges(),
		serviceaddresses.NewRepair(),
		storagemigration.New(),
	}
	if o.Signer != nil {
		list = append(list, certificates.NewSigning(o.Signer))
	}
	if o.Tokens != nil {
		list = append(list, satokens.New(o.Tokens, o.CA))
	}
	return list
}
