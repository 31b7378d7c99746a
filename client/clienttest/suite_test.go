package clienttest_test

import (
	"testing"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clientsuite"
	"knarr.dev/knarr/client/clienttest"
)

func TestSuite(t *testing.T) {
	clientsuite.Run(t, func(*testing.T) client.Interface { return clienttest.New() })
}
