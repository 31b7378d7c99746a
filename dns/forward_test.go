package dns

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestForwardCachesAnswers(t *testing.T) {
	var asked atomic.Int32
	h := example(t)
	s := server(t, sample(), upstream(t, func(w dns.ResponseWriter, m *dns.Msg) { asked.Add(1); h(w, m) }))
	now := time.Now()
	var mu sync.Mutex
	s.forwarder.cache.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	pass := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	for _, tc := range []struct {
		after      time.Duration
		name       string
		rcode      int
		ttl        uint32
		want       int32 // questions that upstream has seen
		answerSize int
	}{
		{0, "www.example.org.", 0, 300, 1, 1},
		{10 * time.Second, "WWW.example.org.", 0, 290, 1, 1},
		{290 * time.Second, "www.example.org.", 0, 300, 2, 1},
		{0, "no.example.org.", dns.RcodeNameError, 300, 3, 0},
		{29 * time.Second, "no.example.org.", dns.RcodeNameError, 271, 3, 0},
		{time.Second, "no.example.org.", dns.RcodeNameError, 300, 4, 0},
	} {
		pass(tc.after)
		r := ask(t, s, "udp", new(dns.Msg).SetQuestion(tc.name, dns.TypeA))
		records := append(r.Answer, r.Ns...)
		if r.Rcode != tc.rcode || len(r.Answer) != tc.answerSize || len(records) != 1 || records[0].Header().Ttl != tc.ttl {
			t.Errorf("%s after %v: %v; want TTL %d", tc.name, tc.after, r, tc.ttl)
		}
		if r.Authoritative || asked.Load() != tc.want {
			t.Errorf("%s after %v: authoritative %t, upstream asked %d times; want %d", tc.name, tc.after, r.Authoritative, asked.Load(), tc.want)
		}
	}
	if m := s.Metrics(); m.CacheHits != 2 || m.CacheMisses != 4 {
		t.Errorf("metrics: %+v", m)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(3, time.Now)
	for i := range 5 {
		name := fmt.Sprintf("n%d.", i)
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Answer = []dns.RR{rr(t, name+" 60 IN A 192.0.2.1")}
		c.put(cacheKey{name: name, qtype: dns.TypeA}, m)
		c.get(cacheKey{name: "n0.", qtype: dns.TypeA}) // in use: stays
	}
	for i, want := range []bool{true, false, false, true, true} {
		if got := c.get(cacheKey{name: fmt.Sprintf("n%d.", i), qtype: dns.TypeA}) != nil; got != want {
			t.Errorf("n%d kept: %t; want %t", i, got, want)
		}
	}
}

func TestFailover(t *testing.T) {
	refusing := upstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(m, dns.RcodeServerFailure))
	})
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s := server(t, sample(), refusing, silent.LocalAddr().String(), upstream(t, example(t)))
	c := dns.Client{Timeout: 5 * time.Second}
	r, _, err := c.Exchange(new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA), s.Addrs()[0].String())
	if err != nil || brief(r.Answer) != "A 192.0.2.1" {
		t.Fatal(r, err)
	}
	// The one that answered is asked first now.
	start := time.Now()
	ask(t, s, "udp", new(dns.Msg).SetQuestion("other.example.org.", dns.TypeA))
	if took := time.Since(start); took >= attemptTimeout {
		t.Errorf("second question took %v", took)
	}
	if m := s.Metrics(); m.UpstreamFailures != 2 {
		t.Errorf("metrics: %+v", m)
	}
}

func TestNoUpstreamIsAServerFailure(t *testing.T) {
	s := server(t, sample(), "127.0.0.1:9") // the discard port: refused
	if r := ask(t, s, "udp", new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", r)
	}
}

func TestTruncatedUpstreamIsAskedByTCP(t *testing.T) {
	up := upstream(t, func(w dns.ResponseWriter, req *dns.Msg) {
		m := new(dns.Msg).SetReply(req)
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			m.Truncated = true
		} else {
			m.Answer = []dns.RR{rr(t, "www.example.org. 60 IN A 192.0.2.2")}
		}
		_ = w.WriteMsg(m)
	})
	s := server(t, sample(), up)
	if r := ask(t, s, "udp", new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)); brief(r.Answer) != "A 192.0.2.2" {
		t.Errorf("got %v", r)
	}
}

func TestOwnAddressIsNoUpstream(t *testing.T) {
	s := server(t, sample(), "127.0.0.1:9")
	own := s.Addrs()[0].String()
	list, err := s.foreign([]string{own, "192.0.2.53", "[2001:db8::53]:5353"})
	if err != nil || fmt.Sprint(list) != "[192.0.2.53:53 [2001:db8::53]:5353]" {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := s.foreign([]string{"dns.example.org"}); err == nil {
		t.Error("a name as upstream: no error")
	}
}
