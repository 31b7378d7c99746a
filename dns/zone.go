package dns

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// ttl of everything in the cluster domain, also of its absence, in seconds. Endpoints move fast.
const ttl = 5

// The Service under whose address clusters publish their DNS server.
const serverNamespace, serverName = "kube-system", "kube-dns"

// zone answers for the cluster domain and for the cluster's addresses.
type zone struct {
	origin string // lower case, with the final dot
	suffix string // "." + origin
	source Source
}

func newZone(domain string, source Source) *zone {
	origin := dns.CanonicalName(domain)
	return &zone{origin: origin, suffix: "." + origin, source: source}
}

// answer fills resp in if the question is the cluster's. It returns the target of an alias, which remains to be
// resolved, and whether the question is the cluster's.
func (z *zone) answer(q dns.Question, resp *dns.Msg) (alias string, ok bool) {
	name := dns.CanonicalName(q.Name)
	if name != z.origin && !strings.HasSuffix(name, z.suffix) {
		if target, ok := z.reverse(name); ok {
			resp.Authoritative = true
			if q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY {
				resp.Answer = append(resp.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: target})
			} else {
				resp.Ns = append(resp.Ns, z.soa())
			}
			return "", true
		}
		return "", false
	}
	resp.Authoritative = true
	r := reply{owner: q.Name, qtype: q.Qtype}
	var labels []string
	if name != z.origin {
		labels = strings.Split(strings.TrimSuffix(name, z.suffix), ".")
	}
	exists := z.lookup(labels, &r)
	resp.Answer = append(resp.Answer, r.answer...)
	resp.Extra = append(resp.Extra, r.extra...)
	if len(r.answer) == 0 {
		resp.Ns = append(resp.Ns, z.soa())
	}
	if !exists {
		resp.Rcode = dns.RcodeNameError
	}
	return r.alias, true
}

// reply collects the records of one name.
type reply struct {
	owner  string
	qtype  uint16
	answer []dns.RR
	extra  []dns.RR
	alias  string
}

func header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// wants reports whether records of the type were asked for.
func (r *reply) wants(rrtype uint16) bool { return r.qtype == rrtype || r.qtype == dns.TypeANY }

func addressRecord(owner string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(owner, dns.TypeA), A: net.IP(a.AsSlice())}
	}
	return &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: net.IP(a.AsSlice())}
}

// addresses adds those of the family that was asked for, in random order, each once.
func (r *reply) addresses(addrs []netip.Addr) {
	seen := make(map[netip.Addr]bool, len(addrs))
	first := len(r.answer)
	for _, a := range addrs {
		if !seen[a] && (a.Is4() && r.wants(dns.TypeA) || a.Is6() && r.wants(dns.TypeAAAA)) {
			seen[a] = true
			r.answer = append(r.answer, addressRecord(r.owner, a))
		}
	}
	added := r.answer[first:]
	rand.Shuffle(len(added), func(i, j int) { added[i], added[j] = added[j], added[i] })
}

func (z *zone) soa() dns.RR {
	// Secondaries do not exist, so the serial says nothing; the last number bounds negative caching.
	return &dns.SOA{
		Hdr: header(z.origin, dns.TypeSOA), Ns: "ns.dns." + z.origin, Mbox: "hostmaster." + z.origin,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

// lookup adds the records of the name below the domain and reports whether the name exists, be it without records.
func (z *zone) lookup(labels []string, r *reply) bool {
	n := len(labels)
	if n == 0 {
		if r.wants(dns.TypeSOA) {
			r.answer = append(r.answer, z.soa())
		}
		if r.wants(dns.TypeNS) {
			r.answer = append(r.answer, &dns.NS{Hdr: header(r.owner, dns.TypeNS), Ns: "ns.dns." + z.origin})
		}
		return true
	}
	switch kind := labels[n-1]; {
	case kind == "svc" && n >= 3:
		return z.service(labels[n-2], labels[n-3], labels[:n-3], r)
	case kind == "pod" && n == 3:
		return z.pod(labels[1], labels[0], r)
	case kind == "svc" || kind == "pod":
		return n == 1 || n == 2 && z.source.NamespaceExists(labels[0])
	case kind == "dns-version" && n == 1:
		if r.wants(dns.TypeTXT) {
			r.answer = append(r.answer, &dns.TXT{Hdr: header(r.owner, dns.TypeTXT), Txt: []string{specVersion}})
		}
		return true
	case kind == "dns" && n == 1:
		return true
	case kind == "dns" && n == 2 && labels[0] == "ns":
		if s, ok := z.source.Service(serverNamespace, serverName); ok {
			r.addresses(s.ClusterIPs)
		}
		return true
	}
	return false
}

// service answers for a Service and the names below it.
func (z *zone) service(namespace, name string, below []string, r *reply) bool {
	s, ok := z.source.Service(namespace, name)
	if !ok {
		return false
	}
	canonical := name + "." + namespace + ".svc." + z.origin
	switch {
	case len(below) == 0 && s.ExternalName != "":
		r.alias = dns.Fqdn(s.ExternalName)
		r.answer = append(r.answer, &dns.CNAME{Hdr: header(r.owner, dns.TypeCNAME), Target: r.alias})
		if r.qtype == dns.TypeCNAME || r.qtype == dns.TypeANY {
			r.alias = ""
		}
		return true
	case len(below) == 0:
		if len(s.ClusterIPs) > 0 {
			r.addresses(s.ClusterIPs)
		} else {
			r.addresses(s.published(""))
		}
		return true
	case len(below) == 1 && strings.HasPrefix(below[0], "_"):
		for _, p := range s.Ports {
			if p.Name != "" && below[0] == "_"+strings.ToLower(p.Protocol) {
				return true
			}
		}
		return false
	case len(below) == 1:
		addrs := s.published(below[0])
		r.addresses(addrs)
		return len(addrs) > 0
	case len(below) == 2 && strings.HasPrefix(below[0], "_") && strings.HasPrefix(below[1], "_"):
		return s.srv(below[0][1:], below[1][1:], canonical, r)
	}
	return false
}

// hostname is the endpoint's name below its Service.
func (e *Endpoint) hostname() string {
	if e.Hostname != "" {
		return strings.ToLower(e.Hostname)
	}
	return dashed(e.Addr)
}

// published returns the addresses that may be named; with a hostname, those of that name.
func (s *Service) published(hostname string) []netip.Addr {
	var out []netip.Addr
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if (e.Ready || s.PublishNotReady) && (hostname == "" || e.hostname() == hostname) {
			out = append(out, e.Addr)
		}
	}
	return out
}

// srv answers for a named port and reports whether the Service has it.
func (s *Service) srv(port, protocol, canonical string, r *reply) bool {
	matches := func(p Port) bool {
		return p.Name != "" && strings.ToLower(p.Name) == port && strings.ToLower(p.Protocol) == protocol
	}
	exists := false
	targets := map[string]bool{}
	extra := map[netip.Addr]bool{}
	add := func(target string, number uint16, addrs ...netip.Addr) {
		if !r.wants(dns.TypeSRV) {
			return
		}
		if key := fmt.Sprint(target, number); !targets[key] {
			targets[key] = true
			r.answer = append(r.answer, &dns.SRV{
				Hdr: header(r.owner, dns.TypeSRV), Weight: 100, Port: number, Target: target,
			})
		}
		for _, a := range addrs {
			if !extra[a] {
				extra[a] = true
				r.extra = append(r.extra, addressRecord(target, a))
			}
		}
	}
	for _, p := range s.Ports {
		if !matches(p) {
			continue
		}
		exists = true
		if len(s.ClusterIPs) > 0 {
			add(canonical, p.Port, s.ClusterIPs...)
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			for _, ep := range e.Ports {
				if matches(ep) && (e.Ready || s.PublishNotReady) {
					add(e.hostname()+"."+canonical, ep.Port, e.Addr)
				}
			}
		}
	}
	return exists
}

// pod answers for a pod's address, written with dashes, if a pod of the namespace has it.
func (z *zone) pod(namespace, label string, r *reply) bool {
	addr, ok := undashed(label)
	if !ok {
		return false
	}
	p, ok := z.source.PodByIP(addr)
	if !ok || p.Namespace != namespace {
		return false
	}
	r.addresses([]netip.Addr{addr})
	return true
}

func dashed(a netip.Addr) string {
	return strings.Map(func(c rune) rune {
		if c == '.' || c == ':' {
			return '-'
		}
		return c
	}, a.String())
}

func undashed(label string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil {
		return a, true
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return a, err == nil && !a.Is4In6()
}

// reverse returns the name of an address of the cluster: of a Service, or of an endpoint with a hostname.
func (z *zone) reverse(name string) (string, bool) {
	addr, ok := reverseAddr(name)
	if !ok {
		return "", false
	}
	if ns, svc, ok := z.source.ServiceByIP(addr); ok {
		return svc + "." + ns + ".svc." + z.origin, true
	}
	p, ok := z.source.PodByIP(addr)
	if !ok || p.Subdomain == "" {
		return "", false
	}
	s, ok := z.source.Service(p.Namespace, p.Subdomain)
	if !ok || len(s.ClusterIPs) > 0 {
		return "", false
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if e.Addr == addr && e.Hostname != "" && (e.Ready || s.PublishNotReady) {
			return e.hostname() + "." + p.Subdomain + "." + p.Namespace + ".svc." + z.origin, true
		}
	}
	return "", false
}

// reverseAddr reads an address out of its name below in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		p := strings.Split(rest, ".")
		if len(p) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		b.WriteByte(rest[i])
		if i%8 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}
