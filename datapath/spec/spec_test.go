package spec

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func valid() Service {
	return Service{
		Namespace: "ns", Name: "web", Protocol: TCP, Port: 80, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Backends: []Backend{{Addr: netip.MustParseAddrPort("10.1.0.1:80")}},
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		what   string
		change func(*Service)
		want   string // part of the error; empty: valid
	}{
		{"valid", func(*Service) {}, ""},
		{"node port alone", func(s *Service) { s.IPs, s.Port, s.NodePort = nil, 0, 30000 }, ""},
		{"IPv6", func(s *Service) { s.IPs[0] = netip.MustParseAddr("fd00::1") }, ""},
		{"SCTP", func(s *Service) { s.Protocol = SCTP }, "not supported"},
		{"protocol", func(s *Service) { s.Protocol = 1 }, "unknown protocol"},
		{"name", func(s *Service) { s.Name = "" }, "required"},
		{"port", func(s *Service) { s.Port = 0 }, "without a port"},
		{"affinity too long", func(s *Service) { s.Affinity = MaxAffinity + time.Second }, "session affinity"},
		{"affinity too fine", func(s *Service) { s.Affinity = time.Millisecond }, "session affinity"},
		{"no address", func(s *Service) { s.IPs[0] = netip.Addr{} }, "no address"},
		{"mapped address", func(s *Service) { s.IPs[0] = netip.MustParseAddr("::ffff:10.0.0.1") }, "no address"},
		{"external address", func(s *Service) { s.ExternalIPs = []netip.Addr{netip.IPv4Unspecified()} }, "no address"},
		{"backend", func(s *Service) { s.Backends[0].Addr = netip.AddrPort{} }, "no backend"},
		{"backend port", func(s *Service) { s.Backends[0].Addr = netip.MustParseAddrPort("10.1.0.1:0") }, "no backend"},
	} {
		s := valid()
		tc.change(&s)
		err := s.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v; want %q", tc.what, err, tc.want)
		}
		if errors.Is(err, ErrUnsupported) != (s.Protocol == SCTP) {
			t.Errorf("%s: unsupported: %v", tc.what, err)
		}
	}
}

func TestEqualSeesEveryField(t *testing.T) {
	for i, change := range []func(*Service){
		func(s *Service) { s.Namespace = "x" }, func(s *Service) { s.Name = "x" }, func(s *Service) { s.PortName = "x" },
		func(s *Service) { s.IPs = nil }, func(s *Service) { s.ExternalIPs = s.IPs }, func(s *Service) { s.Protocol = UDP },
		func(s *Service) { s.Port++ }, func(s *Service) { s.NodePort++ }, func(s *Service) { s.Affinity = time.Second },
		func(s *Service) { s.InternalLocal = true }, func(s *Service) { s.ExternalLocal = true },
		func(s *Service) { s.Backends = nil }, func(s *Service) { s.Backends[0].Local = true },
	} {
		a, b := valid(), valid()
		if !a.Equal(&b) {
			t.Fatal("equal services differ")
		}
		if change(&b); a.Equal(&b) {
			t.Errorf("change %d is not seen", i)
		}
	}
}
