package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

type cluster struct {
	services map[string]Service // by namespace/name
	pods     map[netip.Addr]Pod
}

func (c cluster) Service(namespace, name string) (Service, bool) {
	s, ok := c.services[namespace+"/"+name]
	return s, ok
}

func (c cluster) ServiceByIP(a netip.Addr) (string, string, bool) {
	for k, s := range c.services {
		if slices.Contains(s.ClusterIPs, a) {
			ns, name, _ := strings.Cut(k, "/")
			return ns, name, true
		}
	}
	return "", "", false
}

func (c cluster) PodByIP(a netip.Addr) (Pod, bool) { p, ok := c.pods[a]; return p, ok }

func (c cluster) NamespaceExists(ns string) bool { return ns == "default" || ns == "empty" }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func sample() cluster {
	http := []Port{{"http", "TCP", 8080}}
	return cluster{
		services: map[string]Service{
			"default/web": {
				ClusterIPs: []netip.Addr{addr("10.96.0.5"), addr("fd00::5")},
				Ports:      []Port{{"http", "TCP", 80}, {"dns", "UDP", 53}},
				Endpoints:  []Endpoint{{Addr: addr("10.1.0.9"), Ready: true, Ports: http}},
			},
			"default/v4": {ClusterIPs: []netip.Addr{addr("10.96.0.6")}, Ports: []Port{{"", "TCP", 80}}},
			"default/db": {
				Ports: http,
				Endpoints: []Endpoint{
					{Addr: addr("10.1.0.1"), Hostname: "db-0", Ready: true, Ports: http},
					{Addr: addr("10.1.0.2"), Hostname: "db-1", Ready: false, Ports: http},
					{Addr: addr("10.1.0.3"), Ready: true, Ports: []Port{{"http", "TCP", 8081}}},
				},
			},
			"default/early": {PublishNotReady: true, Endpoints: []Endpoint{{Addr: addr("10.1.0.2"), Hostname: "db-1"}}},
			"default/none":  {Ports: http},
			"default/ext":   {ExternalName: "www.example.org"},
			"default/inner": {ExternalName: "web.default.svc.cluster.local"},
			"default/turn":  {ExternalName: "turn.default.svc.cluster.local"},
		},
		pods: map[netip.Addr]Pod{
			addr("10.1.0.1"): {Namespace: "default", Name: "db-0", Hostname: "db-0", Subdomain: "db"},
			addr("10.1.0.9"): {Namespace: "default", Name: "web"},
			addr("fd01::9"):  {Namespace: "default", Name: "web6"},
		},
	}
}

// upstream serves example.org from a handler, by UDP and TCP.
func upstream(t testing.TB, h dns.HandlerFunc) string {
	t.Helper()
	s, err := New(Config{Addrs: []string{"127.0.0.1:0"}, Upstreams: []string{"127.0.0.1:9"}, Source: sample()})
	if err != nil {
		t.Fatal(err)
	}
	pc, l := s.packets[0], s.listeners[0]
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		go func() { _ = srv.ActivateAndServe() }()
		<-up
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	return pc.LocalAddr().String()
}

func rr(t testing.TB, text string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func example(t testing.TB) dns.HandlerFunc {
	return func(w dns.ResponseWriter, req *dns.Msg) {
		m := new(dns.Msg).SetReply(req)
		if req.Question[0].Name == "www.example.org." && req.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{rr(t, "www.example.org. 300 IN A 192.0.2.1")}
		} else {
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, "example.org. 300 IN SOA ns.example.org. host.example.org. 1 2 3 4 60")}
		}
		_ = w.WriteMsg(m)
	}
}

// server runs a server until the test ends.
func server(t testing.TB, source Source, upstreams ...string) *Server {
	t.Helper()
	s, err := New(Config{Addrs: []string{"127.0.0.1:0"}, Upstreams: upstreams, Source: source})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func ask(t testing.TB, s *Server, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network}
	r, _, err := c.Exchange(m, s.Addrs()[0].String())
	if err != nil {
		t.Fatalf("%v: %v", m.Question, err)
	}
	return r
}

// brief is the part of a record that tests compare: type and data.
func brief(rrs []dns.RR) string {
	var out []string
	for _, r := range rrs {
		h := r.Header()
		out = append(out, dns.TypeToString[h.Rrtype]+" "+strings.TrimPrefix(r.String(), h.String()))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestSpecification(t *testing.T) {
	s := server(t, sample(), upstream(t, example(t)))
	const zone = ".cluster.local."
	soa := "SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
	for _, tc := range []struct {
		name, qtype string
		rcode       int
		want        string // answer; empty: the SOA has to be in the authority section
		extra       string
	}{
		{"web.default.svc" + zone, "A", 0, "A 10.96.0.5", ""},
		{"web.default.svc" + zone, "AAAA", 0, "AAAA fd00::5", ""},
		{"v4.default.svc" + zone, "AAAA", 0, "", ""},
		{"web.default.svc" + zone, "MX", 0, "", ""},
		{"web.default.svc" + zone, "ANY", 0, "A 10.96.0.5, AAAA fd00::5", ""},
		{"WEB.Default.SVC.Cluster.LOCAL.", "A", 0, "A 10.96.0.5", ""},
		{"no.default.svc" + zone, "A", 3, "", ""},
		{"web.no.svc" + zone, "A", 3, "", ""},
		{"a.b.web.default.svc" + zone, "A", 3, "", ""},
		{"default.svc" + zone, "A", 0, "", ""},
		{"empty.svc" + zone, "A", 0, "", ""},
		{"no.svc" + zone, "A", 3, "", ""},
		{"svc" + zone, "A", 0, "", ""},
		{"cluster.local.", "A", 0, "", ""},
		{"cluster.local.", "SOA", 0, soa, ""},
		{"cluster.local.", "NS", 0, "NS ns.dns.cluster.local.", ""},
		{"other" + zone, "A", 3, "", ""},
		{"dns-version" + zone, "TXT", 0, `TXT "1.1.0"`, ""},
		{"dns-version" + zone, "A", 0, "", ""},

		{"db.default.svc" + zone, "A", 0, "A 10.1.0.1, A 10.1.0.3", ""},
		{"db-0.db.default.svc" + zone, "A", 0, "A 10.1.0.1", ""},
		{"db-0.db.default.svc" + zone, "AAAA", 0, "", ""},
		{"db-1.db.default.svc" + zone, "A", 3, "", ""},
		{"10-1-0-3.db.default.svc" + zone, "A", 0, "A 10.1.0.3", ""},
		{"early.default.svc" + zone, "A", 0, "A 10.1.0.2", ""},
		{"db-1.early.default.svc" + zone, "A", 0, "A 10.1.0.2", ""},
		{"none.default.svc" + zone, "A", 0, "", ""},

		{"_http._tcp.web.default.svc" + zone, "SRV", 0, "SRV 0 100 80 web.default.svc.cluster.local.", "A 10.96.0.5, AAAA fd00::5"},
		{"_dns._udp.web.default.svc" + zone, "SRV", 0, "SRV 0 100 53 web.default.svc.cluster.local.", "A 10.96.0.5, AAAA fd00::5"},
		{"_http._udp.web.default.svc" + zone, "SRV", 3, "", ""},
		{"_tcp.web.default.svc" + zone, "SRV", 0, "", ""},
		{"_tcp.v4.default.svc" + zone, "SRV", 3, "", ""},
		{"_http._tcp.web.default.svc" + zone, "A", 0, "", ""},
		{"_http._tcp.db.default.svc" + zone, "SRV", 0,
			"SRV 0 100 8080 db-0.db.default.svc.cluster.local., SRV 0 100 8081 10-1-0-3.db.default.svc.cluster.local.",
			"A 10.1.0.1, A 10.1.0.3"},
		{"_http._tcp.none.default.svc" + zone, "SRV", 0, "", ""},

		{"ext.default.svc" + zone, "CNAME", 0, "CNAME www.example.org.", ""},
		{"ext.default.svc" + zone, "A", 0, "A 192.0.2.1, CNAME www.example.org.", ""},
		{"inner.default.svc" + zone, "A", 0, "A 10.96.0.5, CNAME web.default.svc.cluster.local.", ""},

		{"10-1-0-9.default.pod" + zone, "A", 0, "A 10.1.0.9", ""},
		{"10-1-0-9.empty.pod" + zone, "A", 3, "", ""},
		{"10-1-0-8.default.pod" + zone, "A", 3, "", ""},
		{"fd01--9.default.pod" + zone, "AAAA", 0, "AAAA fd01::9", ""},
		{"default.pod" + zone, "A", 0, "", ""},
		{"no.pod" + zone, "A", 3, "", ""},

		{"5.0.96.10.in-addr.arpa.", "PTR", 0, "PTR web.default.svc.cluster.local.", ""},
		{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "PTR", 0, "PTR web.default.svc.cluster.local.", ""},
		{"5.0.96.10.in-addr.arpa.", "A", 0, "", ""},
		{"1.0.1.10.in-addr.arpa.", "PTR", 0, "PTR db-0.db.default.svc.cluster.local.", ""},
	} {
		t.Run(tc.name+tc.qtype, func(t *testing.T) {
			r := ask(t, s, "udp", new(dns.Msg).SetQuestion(tc.name, dns.StringToType[tc.qtype]))
			if r.Rcode != tc.rcode || brief(r.Answer) != tc.want || brief(r.Extra) != tc.extra {
				t.Errorf("got %s %q, extra %q; want %s %q, %q", dns.RcodeToString[r.Rcode], brief(r.Answer),
					brief(r.Extra), dns.RcodeToString[tc.rcode], tc.want, tc.extra)
			}
			if wantSOA := tc.want == ""; wantSOA != (brief(r.Ns) == soa) {
				t.Errorf("authority section: %q", brief(r.Ns))
			}
			if !r.Authoritative || !r.RecursionAvailable || !r.Response {
				t.Errorf("header: %v", r.MsgHdr)
			}
			for _, a := range r.Answer {
				if a.Header().Rrtype == dns.StringToType[tc.qtype] && len(r.Answer) == 1 && a.Header().Name != tc.name {
					t.Errorf("owner %q; want the question's %q", a.Header().Name, tc.name)
				}
			}
		})
	}
	if r := ask(t, s, "udp", new(dns.Msg).SetQuestion("turn.default.svc.cluster.local.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("an alias of itself: %v", r)
	}
}

func TestProtocol(t *testing.T) {
	s := server(t, sample(), "127.0.0.1:9")
	m := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	m.Question[0].Qclass = dns.ClassCHAOS
	if r := ask(t, s, "udp", m); r.Rcode != dns.RcodeRefused {
		t.Errorf("class CHAOS: %v", dns.RcodeToString[r.Rcode])
	}
	m = new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	m.SetEdns0(4096, true)
	r := ask(t, s, "udp", m)
	if opt := r.IsEdns0(); opt == nil || opt.UDPSize() != udpSize || !opt.Do() || brief(r.Answer) != "A 10.96.0.5" {
		t.Errorf("EDNS: %v", r)
	}
	m.IsEdns0().SetVersion(1)
	if r := ask(t, s, "udp", m); r.Rcode != dns.RcodeBadVers {
		t.Errorf("EDNS version 1: %v", dns.RcodeToString[r.Rcode])
	}
	m = new(dns.Msg).SetNotify("cluster.local.")
	if r := s.respond(t.Context(), m, 512); r.Rcode != dns.RcodeNotImplemented {
		t.Errorf("NOTIFY: %v", dns.RcodeToString[r.Rcode])
	}
	if got := s.Metrics(); got.Queries != 3 || got.Answers["NOERROR"] != 1 || got.Answers["REFUSED"] != 1 {
		t.Errorf("metrics: %+v", got)
	}
}

func TestTruncation(t *testing.T) {
	c := sample()
	big := Service{}
	for i := range 100 {
		big.Endpoints = append(big.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}), Ready: true})
	}
	c.services["default/big"] = big
	s := server(t, c, "127.0.0.1:9")
	m := new(dns.Msg).SetQuestion("big.default.svc.cluster.local.", dns.TypeA)
	r := ask(t, s, "udp", m)
	r.Compress = true // as it was sent
	if !r.Truncated || r.Len() > 512 || len(r.Answer) == 0 {
		t.Errorf("UDP: truncated %t, %d bytes, %d records", r.Truncated, r.Len(), len(r.Answer))
	}
	if r := ask(t, s, "tcp", m); r.Truncated || len(r.Answer) != 100 {
		t.Errorf("TCP: truncated %t, %d records", r.Truncated, len(r.Answer))
	}
	m.SetEdns0(4096, false)
	if r := ask(t, s, "udp", m); r.Truncated || len(r.Answer) != 100 {
		t.Errorf("EDNS: truncated %t, %d records", r.Truncated, len(r.Answer))
	}
}

func FuzzRespond(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.db.default.svc.cluster.local.", "1.0.1.10.in-addr.arpa.",
		"fd01--9.default.pod.cluster.local.", "turn.default.svc.cluster.local.", "."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeANY)
		m.SetEdns0(1232, true)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s, err := New(Config{Upstreams: []string{"127.0.0.1:9"}, Source: sample()})
	if err != nil {
		f.Fatal(err)
	}
	s.forwarder.upstreams = nil // nothing leaves the process
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(dns.Msg)
		if req.Unpack(b) != nil {
			return
		}
		id := req.Id
		r := s.respond(t.Context(), req, 512)
		packed, err := r.Pack()
		if err != nil {
			t.Fatalf("answer to %v cannot be packed: %v", req, err)
		}
		// A question alone may exceed the limit where it cannot be compressed; records may not.
		if len(packed) > 512 && len(r.Answer)+len(r.Ns) > 0 {
			t.Fatalf("%d bytes", len(packed))
		}
		if !r.Response || r.Id != id {
			t.Fatalf("%v is no answer to %v", r, req)
		}
	})
}

func BenchmarkRespond(b *testing.B) {
	s, err := New(Config{Upstreams: []string{"127.0.0.1:9"}, Source: sample()})
	if err != nil {
		b.Fatal(err)
	}
	req := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	for b.Loop() {
		s.respond(b.Context(), req, 512)
	}
}

func BenchmarkUDP(b *testing.B) {
	s := server(b, sample(), "127.0.0.1:9")
	req := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	b.RunParallel(func(pb *testing.PB) {
		c := dns.Client{}
		conn, err := c.Dial(s.Addrs()[0].String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		for pb.Next() {
			if _, _, err := c.ExchangeWithConn(req, conn); err != nil {
				b.Error(fmt.Errorf("exchange: %w", err))
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}
