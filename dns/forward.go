package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// attemptTimeout is how long one upstream server may take before the next is asked. All attempts together stay below
// the five seconds after which resolvers give up.
const (
	attemptTimeout = 1500 * time.Millisecond
	totalTimeout   = 4500 * time.Millisecond
)

const resolvConf = "/etc/resolv.conf"

// systemUpstreams reads the machine's name servers.
func systemUpstreams() ([]string, error) {
	c, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", resolvConf, err)
	}
	if len(c.Servers) == 0 {
		return nil, fmt.Errorf("%s names no server", resolvConf)
	}
	return c.Servers, nil
}

// forwarder asks upstream servers, one at a time, starting with the one that answered last. Equal questions that come
// while one is on its way share its answer, which also ends a loop through servers that ask us.
type forwarder struct {
	upstreams []string
	log       *slog.Logger
	cache     *cache
	flights   singleflight.Group
	good      atomic.Uint32 // index of the upstream that answered last

	hits, misses, failures atomic.Uint64
}

func newForwarder(upstreams []string, log *slog.Logger) *forwarder {
	return &forwarder{upstreams: upstreams, log: log, cache: newCache(cacheSize, time.Now)}
}

// answer copies what upstream says into resp, or makes it a server failure.
func (f *forwarder) answer(ctx context.Context, req, resp *dns.Msg) {
	q := req.Question[0]
	k := cacheKey{name: dns.CanonicalName(q.Name), qtype: q.Qtype, checkingDisabled: req.CheckingDisabled}
	if opt := req.IsEdns0(); opt != nil {
		k.dnssec = opt.Do()
	}
	m := f.cache.get(k)
	if m != nil {
		f.hits.Add(1)
	} else {
		f.misses.Add(1)
		v, err, _ := f.flights.Do(fmt.Sprint(k), func() (any, error) {
			m, err := f.ask(ctx, k)
			if err == nil {
				f.cache.put(k, m)
			}
			return m, err
		})
		if err != nil {
			if ctx.Err() == nil {
				f.log.Debug("forwarding", "name", k.name, "type", dns.TypeToString[k.qtype], "err", err)
			}
			resp.Rcode = dns.RcodeServerFailure
			return
		}
		m = v.(*dns.Msg).Copy() // shared with other askers
	}
	resp.Answer, resp.Ns, resp.Extra = m.Answer, m.Ns, without(m.Extra, dns.TypeOPT)
	resp.Rcode, resp.AuthenticatedData = m.Rcode, m.AuthenticatedData
}

// ask tries the upstream servers in turn. A server that refuses or fails is passed over while there is another.
func (f *forwarder) ask(ctx context.Context, k cacheKey) (*dns.Msg, error) {
	if len(f.upstreams) == 0 {
		return nil, errors.New("no upstream servers are known; name some in the configuration or in " + resolvConf)
	}
	ctx, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	req := new(dns.Msg).SetQuestion(k.name, k.qtype)
	req.CheckingDisabled = k.checkingDisabled
	req.SetEdns0(udpSize, k.dnssec)
	var errs []error
	var last *dns.Msg
	first := int(f.good.Load())
	for i := range f.upstreams {
		n := (first + i) % len(f.upstreams)
		m, err := exchange(ctx, req, f.upstreams[n])
		if err == nil && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError) {
			f.good.Store(uint32(n))
			return m, nil
		}
		f.failures.Add(1)
		if err != nil {
			errs = append(errs, err)
		} else {
			last = m
		}
	}
	if last != nil {
		return last, nil
	}
	return nil, errors.Join(errs...)
}

// exchange asks one server by UDP, and by TCP if the answer is cut off.
func exchange(ctx context.Context, req *dns.Msg, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	m, err := exchangeBy(ctx, "udp", req, server)
	if err == nil && m.Truncated {
		return exchangeBy(ctx, "tcp", req, server)
	}
	return m, err
}

func exchangeBy(ctx context.Context, network string, req *dns.Msg, server string) (*dns.Msg, error) {
	c := dns.Client{Net: network, UDPSize: udpSize, Timeout: attemptTimeout}
	req = req.Copy()
	req.Id = dns.Id()
	m, _, err := c.ExchangeContext(ctx, req, server)
	if err != nil {
		return nil, fmt.Errorf("asking upstream %s by %s: %w", server, network, err)
	}
	return m, nil
}
