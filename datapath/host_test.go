package datapath

import (
	"net"
	"testing"
)

// Every link of a pod gets a link-local address: those must not have the node's
// addresses read anew.
func TestOfNode(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::1",
		"127.0.0.1": "", "::1": "", "::ffff:127.0.0.1": "", "fe80::1": "", "169.254.1.1": "", "::ffff:169.254.1.1": "",
	} {
		ip, ok := ofNode(net.ParseIP(text))
		if ok != (want != "") || ok && ip.String() != want {
			t.Errorf("%s: %v, %v", text, ip, ok)
		}
	}
	if _, ok := ofNode(nil); ok {
		t.Error("no address is one")
	}
}
