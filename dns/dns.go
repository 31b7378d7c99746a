// Package dns is the cluster's DNS server. It answers for the cluster domain after the Kubernetes DNS-Based Service
// Discovery specification, version 1.1.0, out of the caller's memory, and forwards everything else to upstream servers
// through a cache.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// specVersion is the version of the specification that the server implements, as it announces it.
const specVersion = "1.1.0"

const (
	// udpSize is what we tell others to send us at most: the size that survives any path unfragmented.
	udpSize = 1232
	// maxUDPSize bounds our answers by UDP, whatever the client claims to take.
	maxUDPSize = 4096
)

// Config says what a server answers and where. Source is required.
type Config struct {
	// Domain is the cluster domain; empty: cluster.local.
	Domain string
	// Addrs are host:port pairs served by UDP and TCP; port 0 takes any free one.
	Addrs []string
	// Upstreams are host or host:port; empty: the name servers of /etc/resolv.conf, as they are when New is called.
	Upstreams []string
	Source    Source
	Log       *slog.Logger
}

// Server is a DNS server.
type Server struct {
	log       *slog.Logger
	zone      *zone
	forwarder *forwarder
	packets   []net.PacketConn
	listeners []net.Listener
	queries   atomic.Uint64
	rcodes    [dns.RcodeBadVers + 1]atomic.Uint64
}

// Metrics is a snapshot of a server's counters.
type Metrics struct {
	// Queries were received; Answers were sent, by response code.
	Queries uint64
	Answers map[string]uint64
	// CacheHits and CacheMisses count forwarded questions.
	CacheHits, CacheMisses uint64
	// UpstreamFailures counts attempts that got no usable answer.
	UpstreamFailures uint64
}

// New binds the addresses. Run must be called, be it with a cancelled context, to give them back.
func New(cfg Config) (*Server, error) {
	if cfg.Source == nil {
		return nil, errors.New("dns: a source is required")
	}
	if cfg.Domain == "" {
		cfg.Domain = "cluster.local"
	}
	if _, ok := dns.IsDomainName(cfg.Domain); !ok {
		return nil, fmt.Errorf("dns: %q is no domain name", cfg.Domain)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Upstreams) == 0 {
		list, err := systemUpstreams()
		if err != nil {
			cfg.Log.Warn("no upstream servers; names outside the cluster will fail", "err", err)
		}
		cfg.Upstreams = list
	}
	s := &Server{log: cfg.Log, zone: newZone(cfg.Domain, cfg.Source)}
	for _, addr := range cfg.Addrs {
		if err := s.listen(addr); err != nil {
			s.close()
			return nil, fmt.Errorf("dns: listening at %s: %w", addr, err)
		}
	}
	upstreams, err := s.foreign(cfg.Upstreams)
	if err != nil {
		s.close()
		return nil, err
	}
	s.forwarder = newForwarder(upstreams, cfg.Log)
	return s, nil
}

// listen binds UDP and TCP to the same port.
func (s *Server) listen(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	attempts := 1
	if port == "0" {
		attempts = 16 // the port found for UDP may not be free for TCP
	}
	for range attempts {
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", addr); err != nil {
			return err
		}
		var l net.Listener
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			s.packets = append(s.packets, pc)
			s.listeners = append(s.listeners, l)
			return nil
		}
		_ = pc.Close()
	}
	return err
}

// foreign brings upstreams into host:port form and drops those that are this server.
func (s *Server) foreign(upstreams []string) ([]string, error) {
	own := map[netip.Addr]bool{}
	if list, err := net.InterfaceAddrs(); err == nil {
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				own[p.Addr()] = true
			}
		}
	}
	var out []string
	for _, u := range upstreams {
		addr, err := netip.ParseAddrPort(u)
		if err != nil {
			ip, err := netip.ParseAddr(u)
			if err != nil {
				return nil, fmt.Errorf("dns: upstream %q is neither an address nor address:port", u)
			}
			addr = netip.AddrPortFrom(ip, 53)
		}
		ours := false
		for _, a := range s.Addrs() {
			ours = ours || a == addr ||
				a.Addr().IsUnspecified() && a.Port() == addr.Port() && (own[addr.Addr()] || addr.Addr().IsLoopback())
		}
		if ours {
			s.log.Warn("dropping an upstream that is this server", "upstream", addr)
			continue
		}
		out = append(out, addr.String())
	}
	return out, nil
}

// Addrs returns the bound addresses.
func (s *Server) Addrs() []netip.AddrPort {
	out := make([]netip.AddrPort, len(s.packets))
	for i, pc := range s.packets {
		out[i] = netip.MustParseAddrPort(pc.LocalAddr().String())
		out[i] = netip.AddrPortFrom(out[i].Addr().Unmap(), out[i].Port())
	}
	return out
}

func (s *Server) close() {
	for _, pc := range s.packets {
		_ = pc.Close()
	}
	for _, l := range s.listeners {
		_ = l.Close()
	}
}

// Run serves until ctx ends, then answers what has been received and returns nil. An error means that a socket failed.
func (s *Server) Run(ctx context.Context) error {
	if ctx.Err() != nil {
		s.close()
		return nil
	}
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) { s.serve(work, w, req) })
	var servers []*dns.Server
	for i := range s.packets {
		servers = append(servers,
			&dns.Server{PacketConn: s.packets[i], Handler: handler},
			&dns.Server{Listener: s.listeners[i], Handler: handler, ReadTimeout: 5 * time.Second})
	}
	failed := make(chan error, len(servers))
	var started []chan struct{}
	for _, srv := range servers {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		started = append(started, up)
		go func() { failed <- srv.ActivateAndServe() }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	for i, srv := range servers {
		select {
		case <-started[i]:
			_ = srv.Shutdown()
		case <-failed:
		}
	}
	s.close()
	if err != nil {
		return fmt.Errorf("dns: serving: %w", err)
	}
	return nil
}

// serve answers one request.
func (s *Server) serve(ctx context.Context, w dns.ResponseWriter, req *dns.Msg) {
	s.queries.Add(1)
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDPSize)
		}
	}
	resp := s.respond(ctx, req, size)
	s.rcodes[min(resp.Rcode, len(s.rcodes)-1)].Add(1)
	if err := w.WriteMsg(resp); err != nil {
		s.log.Debug("sending an answer", "to", w.RemoteAddr(), "err", err)
	}
}

// respond makes the answer to a request, of size bytes at most.
func (s *Server) respond(ctx context.Context, req *dns.Msg, size int) *dns.Msg {
	resp := new(dns.Msg).SetReply(req)
	opt := req.IsEdns0()
	switch {
	case req.Opcode != dns.OpcodeQuery:
		resp.Rcode = dns.RcodeNotImplemented
	case req.Response || len(req.Question) != 1:
		resp.Rcode = dns.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		resp.Rcode = dns.RcodeBadVers
	case req.Question[0].Qclass != dns.ClassINET:
		resp.Rcode = dns.RcodeRefused
	default:
		resp.RecursionAvailable = true
		s.resolve(ctx, req, resp)
	}
	if opt != nil {
		// Whatever an upstream server said about its own limits is no concern of the client.
		resp.Extra = without(resp.Extra, dns.TypeOPT)
		resp.SetEdns0(udpSize, opt.Do())
	}
	resp.Truncate(size)
	return resp
}

// resolve fills the answer in: from the cluster, or from upstream.
func (s *Server) resolve(ctx context.Context, req, resp *dns.Msg) {
	q := req.Question[0]
	alias, ok := s.zone.answer(q, resp)
	if !ok {
		s.forwarder.answer(ctx, req, resp)
		return
	}
	if alias == "" {
		return
	}
	// Stub resolvers expect the whole chain. One that turns inside the zone is cut: aliases of aliases are few.
	const depth = 8
	for range depth {
		next := dns.Question{Name: alias, Qtype: q.Qtype, Qclass: q.Qclass}
		sub := new(dns.Msg).SetQuestion(alias, q.Qtype)
		further, ok := s.zone.answer(next, sub)
		if !ok {
			ask := new(dns.Msg).SetQuestion(alias, q.Qtype)
			sub = new(dns.Msg).SetReply(ask)
			s.forwarder.answer(ctx, ask, sub)
		}
		resp.Answer = append(resp.Answer, sub.Answer...)
		resp.Ns, resp.Rcode = sub.Ns, sub.Rcode
		if !ok || further == "" {
			return
		}
		alias = further
	}
	resp.Rcode = dns.RcodeServerFailure
}

func without(rrs []dns.RR, rrtype uint16) []dns.RR {
	var out []dns.RR
	for _, rr := range rrs {
		if rr.Header().Rrtype != rrtype {
			out = append(out, rr)
		}
	}
	return out
}

// Metrics returns the counters.
func (s *Server) Metrics() Metrics {
	m := Metrics{
		Queries: s.queries.Load(), Answers: map[string]uint64{},
		CacheHits: s.forwarder.hits.Load(), CacheMisses: s.forwarder.misses.Load(),
		UpstreamFailures: s.forwarder.failures.Load(),
	}
	for code := range s.rcodes {
		if n := s.rcodes[code].Load(); n > 0 {
			m.Answers[dns.RcodeToString[code]] = n
		}
	}
	return m
}
