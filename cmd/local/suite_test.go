package local_test

import (
	"testing"
	"time"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clientsuite"
	"knarr.dev/knarr/cmd/local"
)

func TestSuite(t *testing.T) {
	clientsuite.Run(t, func(t *testing.T) client.Interface {
		s := apitest.Start(t, apitest.Options{})
		l := &local.Server{Registry: s.Registry, Authz: s.Authz, Tokens: s.Tokens, Now: time.Now}
		return l.As(auth.Component("tester", auth.GroupMasters))
	})
}
