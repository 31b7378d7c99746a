package dns

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// cacheSize bounds the cache, in answers; at a few hundred bytes each it stays within some megabytes.
const cacheSize = 8192

// Bounds of an answer's life in the cache. What does not exist may exist soon.
const (
	maxTTL         = time.Hour
	maxNegativeTTL = 30 * time.Second
)

type cacheKey struct {
	name             string // canonical
	qtype            uint16
	dnssec           bool
	checkingDisabled bool
}

// cache keeps answers of upstream servers for as long as they permit, the least recently used go first.
type cache struct {
	mu      sync.Mutex
	size    int
	now     func() time.Time
	entries map[cacheKey]*list.Element
	order   *list.List // most recently used first
}

type cacheEntry struct {
	key             cacheKey
	msg             *dns.Msg // never modified
	stored, expires time.Time
}

func newCache(size int, now func() time.Time) *cache {
	return &cache{size: size, now: now, entries: map[cacheKey]*list.Element{}, order: list.New()}
}

// get returns a copy, its times to live reduced by the answer's age, or nil.
func (c *cache) get(k cacheKey) *dns.Msg {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.entries[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*cacheEntry)
	now := c.now()
	if !now.Before(e.expires) {
		c.remove(el)
		return nil
	}
	c.order.MoveToFront(el)
	m := e.msg.Copy()
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(age, h.Ttl)
			}
		}
	}
	return m
}

// put keeps the answer, unless it may not be kept. The message must not be modified afterwards.
func (c *cache) put(k cacheKey, m *dns.Msg) {
	life := lifetime(m)
	if life <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.entries[k]; el != nil {
		c.remove(el)
	}
	for len(c.entries) >= c.size {
		c.remove(c.order.Back())
	}
	now := c.now()
	c.entries[k] = c.order.PushFront(&cacheEntry{key: k, msg: m, stored: now, expires: now.Add(life)})
}

func (c *cache) remove(el *list.Element) {
	c.order.Remove(el)
	delete(c.entries, el.Value.(*cacheEntry).key)
}

// lifetime is how long the answer may be given out: the least time to live of its records; where nothing was found,
// what the zone's SOA record permits (RFC 2308), and nothing without one.
func lifetime(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	limit, negative := maxTTL, m.Rcode == dns.RcodeNameError || len(m.Answer) == 0
	if negative {
		limit = maxNegativeTTL
	}
	soa := false
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			limit = min(limit, time.Duration(rr.Header().Ttl)*time.Second)
			if s, ok := rr.(*dns.SOA); ok && negative {
				soa = true
				limit = min(limit, time.Duration(s.Minttl)*time.Second)
			}
		}
	}
	if negative && !soa {
		return 0
	}
	return limit
}
