package plan

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"knarr.dev/knarr/datapath/spec"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// parse reads one state: a service a line, `name key=value ...`.
func parse(t testing.TB, text string) spec.State {
	t.Helper()
	var s spec.State
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		svc := spec.Service{Namespace: "ns", Name: words[0], Protocol: spec.TCP, Port: 80}
		for _, w := range words[1:] {
			k, v, _ := strings.Cut(w, "=")
			switch k {
			case "ip":
				svc.IPs = append(svc.IPs, netip.MustParseAddr(v))
			case "external":
				svc.ExternalIPs = append(svc.ExternalIPs, netip.MustParseAddr(v))
			case "nodeport":
				fmt.Sscan(v, &svc.NodePort)
			case "affinity":
				svc.Affinity, _ = time.ParseDuration(v)
			case "internal-local":
				svc.InternalLocal = true
			case "to", "to-local":
				svc.Backends = append(svc.Backends, spec.Backend{Addr: netip.MustParseAddrPort(v), Local: k == "to-local"})
			default:
				t.Fatalf("unknown word %q", w)
			}
		}
		s.Services = append(s.Services, svc)
	}
	return s
}

// render lists changes in the order of their execution, pools by small numbers.
func render(c Changes, names map[uint64]string) string {
	name := func(id uint64) string {
		if names[id] == "" {
			names[id] = fmt.Sprint("pool", len(names)+1)
		}
		return names[id]
	}
	sorted := func(lines []string) string { slices.Sort(lines); return strings.Join(lines, "") }
	front := func(f Frontend) string { return netip.AddrPortFrom(f.Addr, f.Port).String() }
	slices.SortFunc(c.PutFrontends, func(a, b FrontendEntry) int { return a.Frontend.Addr.Compare(b.Frontend.Addr) })
	for _, e := range c.PutFrontends {
		name(e.Target.Pool)
	}
	var out strings.Builder
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format+"\n", args...)) }
	flush := func() { out.WriteString(sorted(lines)); lines = nil }
	for _, m := range c.PutMembers {
		add("put member %s %v", name(m.Pool), m.Backend)
	}
	flush()
	for _, e := range c.PutSlots {
		add("put slot %s/%d/%d %v", name(e.Slot.Pool), e.Slot.Generation, e.Slot.Index, e.Backend)
	}
	flush()
	for _, e := range c.PutFrontends {
		add("put frontend %s -> %s/%d count=%d affinity=%d", front(e.Frontend), name(e.Target.Pool),
			e.Target.Generation, e.Target.Count, e.Target.Affinity)
	}
	flush()
	for _, f := range c.DeleteFrontends {
		add("delete frontend %s", front(f))
	}
	flush()
	for _, s := range c.DeleteSlots {
		add("delete slot %s/%d/%d", name(s.Pool), s.Generation, s.Index)
	}
	flush()
	for _, m := range c.DeleteMembers {
		add("delete member %s %v", name(m.Pool), m.Backend)
	}
	flush()
	if out.Len() == 0 {
		return "nothing\n"
	}
	return out.String()
}

// Each script is a sequence of states, separated by lines of dashes; its golden file has the changes of each step.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts:", err)
	}
	for _, path := range scripts {
		t.Run(filepath.Base(path), func(t *testing.T) {
			script, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			p, names := New(NewImage()), map[uint64]string{}
			var got strings.Builder
			for _, step := range strings.Split(string(script), "---\n") {
				c, err := p.Plan(parse(t, step))
				if err != nil {
					t.Fatal(err)
				}
				got.WriteString(render(c, names) + "---\n")
			}
			golden := strings.TrimSuffix(path, ".txt") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", &got, want)
			}
		})
	}
}

// whole reports an error unless every frontend of the image finds all its slots and members.
func whole(m Image) error {
	for f, target := range m.Frontends {
		for i := range target.Count {
			b, ok := m.Slots[Slot{target.Pool, target.Generation, i}]
			if !ok {
				return fmt.Errorf("%v points at %+v, whose slot %d is missing", f, target, i)
			}
			if _, ok := m.Members[Member{target.Pool, b}]; !ok {
				return fmt.Errorf("%v: backend %v is no member of its pool", f, b)
			}
		}
	}
	return nil
}

// steps calls f after every single operation of the changes.
func steps(c Changes, m Image, f func()) {
	one := func(c Changes) { c.Apply(m); f() }
	for _, e := range c.PutMembers {
		one(Changes{PutMembers: []Member{e}})
	}
	for _, e := range c.PutSlots {
		one(Changes{PutSlots: []SlotEntry{e}})
	}
	for _, e := range c.PutFrontends {
		one(Changes{PutFrontends: []FrontendEntry{e}})
	}
	for _, e := range c.DeleteFrontends {
		one(Changes{DeleteFrontends: []Frontend{e}})
	}
	for _, e := range c.DeleteSlots {
		one(Changes{DeleteSlots: []Slot{e}})
	}
	for _, e := range c.DeleteMembers {
		one(Changes{DeleteMembers: []Member{e}})
	}
}

func random(r *rand.Rand) spec.State {
	var s spec.State
	for i := range 6 {
		if r.IntN(3) == 0 {
			continue
		}
		svc := spec.Service{Namespace: "ns", Name: fmt.Sprint("s", i), Protocol: spec.TCP, Port: uint16(80 + r.IntN(2))}
		svc.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + r.IntN(5))})} // collisions wanted
		if r.IntN(3) == 0 {
			svc.NodePort = uint16(30000 + r.IntN(2))
		}
		if r.IntN(3) == 0 {
			svc.IPs = append(svc.IPs, netip.MustParseAddr("fd00::1"))
		}
		svc.InternalLocal = r.IntN(4) == 0
		svc.Affinity = time.Duration(r.IntN(2)) * time.Hour
		for range r.IntN(4) {
			svc.Backends = append(svc.Backends, spec.Backend{
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(1 + r.IntN(6))}), 8080), Local: r.IntN(2) == 0,
			})
		}
		s.Services = append(s.Services, svc)
	}
	r.Shuffle(len(s.Services), func(i, j int) { s.Services[i], s.Services[j] = s.Services[j], s.Services[i] })
	return s
}

// After every operation each frontend finds its backends; at the end the maps hold what a fresh planner would put
// there, also when the planner was replaced half way through some changes.
func check(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	m, p := NewImage(), New(NewImage())
	for range 12 {
		s := random(r)
		c, err := p.Plan(s)
		if err != nil {
			t.Fatal(err)
		}
		n, stop := 0, -1
		if r.IntN(3) == 0 {
			stop = r.IntN(8)
		}
		crashed := NewImage()
		steps(c, m, func() {
			if err := whole(m); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if n++; n == stop {
				crashed = Image{maps.Clone(m.Frontends), maps.Clone(m.Slots), maps.Clone(m.Members)}
			}
		})
		if stop > 0 && n >= stop { // died after operation stop; the next process sets the same state
			m, p = crashed, New(crashed)
			if c, err = p.Plan(s); err != nil {
				t.Fatal(err)
			}
			c.Apply(m)
		}
		fresh := NewImage()
		f, _ := New(fresh).Plan(s)
		f.Apply(fresh)
		if got, want := shape(m), shape(fresh); !maps.EqualFunc(got, want, slices.Equal[[]string]) {
			t.Fatalf("seed %d: maps hold %v; want %v", seed, got, want)
		}
		if len(m.Slots) != len(fresh.Slots) || !maps.Equal(m.Members, fresh.Members) {
			t.Fatalf("seed %d: leftovers: %d slots, %d members; want %d, %d", seed, len(m.Slots), len(m.Members),
				len(fresh.Slots), len(fresh.Members))
		}
		if c, err := p.Plan(s); err != nil || !c.Empty() {
			t.Fatalf("seed %d: planning the same again gives %+v, %v", seed, c, err)
		}
	}
}

// shape is what clients see, free of generations.
func shape(m Image) map[Frontend][]string {
	out := map[Frontend][]string{}
	for f, target := range m.Frontends {
		see := []string{fmt.Sprint(target.Pool, target.Affinity)}
		for i := range target.Count {
			see = append(see, m.Slots[Slot{target.Pool, target.Generation, i}].String())
		}
		out[f] = see
	}
	return out
}

func TestRandomHistories(t *testing.T) {
	for seed := range uint64(300) {
		check(t, seed)
	}
}

func FuzzHistories(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(check)
}

func TestRejectsOnce(t *testing.T) {
	sctp := spec.Service{Namespace: "ns", Name: "a", Protocol: spec.SCTP, Port: 1}
	good := parse(t, "b ip=10.0.0.1 to=10.1.0.1:80").Services[0]
	p := New(NewImage())
	s := spec.State{Services: []spec.Service{sctp, good, good}}
	c, err := p.Plan(spec.State{Services: []spec.Service{sctp, good}})
	if !errors.Is(err, spec.ErrUnsupported) || len(c.PutFrontends) != 1 {
		t.Errorf("first: %v, %+v", err, c)
	}
	if c, err := p.Plan(spec.State{Services: []spec.Service{sctp, good}}); err != nil || !c.Empty() {
		t.Errorf("again: %v, %+v", err, c)
	}
	if _, err := p.Plan(s); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("duplicate: %v", err)
	}
}

func BenchmarkPlanOneMoreOf10000(b *testing.B) {
	var s spec.State
	for i := range 10001 {
		svc := parse(b, fmt.Sprintf("s%d ip=10.%d.%d.1 to=10.200.0.1:80 to=10.200.0.2:80", i, i/250, i%250)).Services[0]
		s.Services = append(s.Services, svc)
	}
	p := New(NewImage())
	for i := 0; b.Loop(); i++ {
		if _, err := p.Plan(spec.State{Services: s.Services[:10001-i%2]}); err != nil {
			b.Fatal(err)
		}
	}
}
