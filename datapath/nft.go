package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"knarr.dev/knarr/datapath/plan"
	"knarr.dev/knarr/datapath/spec"
)

// The table serves what sockets of this node cannot: clients of other machines that come in by a node port or an
// external address, pods that leave the cluster, and packets to service addresses that nobody serves. Established
// connections are conntrack's, so the table may be replaced at any time, which happens in one transaction.

const (
	tablePrefix = "knarr-"
	ctDNAT      = 0x20 // IPS_DST_NAT

	// transactionSize bounds a transaction; a thousand external services take about a megabyte.
	transactionSize = 64 << 20
)

// Registers of 4 bytes each; a concatenated key lies in consecutive ones.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_01
	reg2 = unix.NFT_REG32_02
)

func (d *Datapath) tableName() string { return tablePrefix + d.cfg.Name }

func (d *Datapath) tables() ([]*nftables.Table, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	all, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("listing nftables tables: %w; is nf_tables in the kernel?", err)
	}
	return all, nil
}

// ensureTable makes sure that pods can leave; the services that an existing table holds stay until Set.
func (d *Datapath) ensureTable() error {
	all, err := d.tables()
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.Name == d.tableName() {
			return nil
		}
	}
	return d.buildTable(nil)
}

// lastTable reports whether no other instance has a table.
func (d *Datapath) lastTable() (bool, error) {
	all, err := d.tables()
	if err != nil {
		return false, err
	}
	for _, t := range all {
		if strings.HasPrefix(t.Name, tablePrefix) && t.Name != d.tableName() {
			return false, nil
		}
	}
	return true, nil
}

func (d *Datapath) destroyTable() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	// Adding first makes the deletion of a table that is not there succeed.
	t := &nftables.Table{Name: d.tableName(), Family: nftables.TableFamilyIPv4}
	c.AddTable(t)
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("deleting nftables table %s: %w", t.Name, err)
	}
	return nil
}

// buildTable replaces the table by one that serves the given services.
func (d *Datapath) buildTable(services []spec.Service) error {
	// A transaction is one message to the kernel, and each part of it is acknowledged.
	c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(transactionSize), c.SetReadBuffer(transactionSize))
	}))
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	t := &nftables.Table{Name: d.tableName(), Family: nftables.TableFamilyIPv4}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	b := &table{c: c, t: t, d: d}
	b.incoming(services)
	b.leaving()
	if d.cfg.ServiceCIDR.IsValid() && d.cfg.ServiceCIDR.Addr().Is4() {
		b.unserved("unserved-forward", nftables.ChainHookForward)
		b.unserved("unserved-output", nftables.ChainHookOutput)
	}
	if b.err == nil {
		b.err = c.Flush()
	}
	if b.err != nil {
		return fmt.Errorf("writing nftables table %s with %d external services: %w", t.Name, len(services), b.err)
	}
	return nil
}

// table collects one transaction.
type table struct {
	c   *nftables.Conn
	t   *nftables.Table
	d   *Datapath
	err error
}

func (b *table) rule(chain *nftables.Chain, exprs ...expr.Any) {
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: chain, Exprs: exprs})
}

// set adds a set and its elements, in portions: the list of one message has to stay below 64 KiB.
func (b *table) set(s *nftables.Set, elements []nftables.SetElement) {
	const portion = 256
	err := b.c.AddSet(s, nil)
	for part := range slices.Chunk(elements, portion) {
		err = errors.Join(err, b.c.SetAddElements(s, part))
	}
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("set %s: %w", s.Name, err)
	}
}

// key appends address (for external addresses), protocol and port as a map key: each part takes whole registers.
func key(addr netip.Addr, proto spec.Protocol, port uint16) []byte {
	var k []byte
	if addr.IsValid() {
		k = addr.AsSlice()
	}
	k = append(k, byte(proto), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(k, port), 0, 0)
}

// incoming redirects clients of other machines: one chain a service, found by node port or external address.
func (b *table) incoming(services []spec.Service) {
	pre := b.c.AddChain(&nftables.Chain{
		Name: "incoming", Table: b.t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	var ports, addrs []nftables.SetElement
	for i, s := range services {
		chain := &nftables.Chain{Name: fmt.Sprintf("service-%d", i), Table: b.t}
		jump := &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}
		owns := func(addr netip.Addr, port uint16) bool {
			k, ok := b.d.planner.Owner(plan.Frontend{Addr: addr, Port: port, Protocol: s.Protocol})
			return ok && k == s.Key()
		}
		n := len(ports) + len(addrs)
		if s.NodePort != 0 && owns(netip.IPv4Unspecified(), s.NodePort) {
			ports = append(ports, nftables.SetElement{Key: key(netip.Addr{}, s.Protocol, s.NodePort), VerdictData: jump})
		}
		for _, ip := range s.ExternalIPs {
			if ip.Is4() && owns(ip, s.Port) {
				addrs = append(addrs, nftables.SetElement{Key: key(ip, s.Protocol, s.Port), VerdictData: jump})
			}
		}
		if len(ports)+len(addrs) > n {
			b.service(b.c.AddChain(chain), s)
		}
	}
	proto := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0}
	port := func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	}
	if len(addrs) > 0 {
		m := &nftables.Set{
			Table: b.t, Name: "external-addresses", IsMap: true, Concatenation: true,
			KeyType:  nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
			DataType: nftables.TypeVerdict,
		}
		b.set(m, addrs)
		b.rule(pre, daddr(reg0), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, port(reg2),
			&expr.Lookup{SourceRegister: reg0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID})
	}
	if len(ports) == 0 {
		return
	}
	m := &nftables.Set{
		Table: b.t, Name: "node-ports", IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.TypeVerdict,
	}
	b.set(m, ports)
	var exprs []expr.Any
	if list := b.d.cfg.NodeAddrs; len(list) > 0 {
		nodes := &nftables.Set{Table: b.t, Name: "nodes", KeyType: nftables.TypeIPAddr}
		var elements []nftables.SetElement
		for _, a := range list {
			if a.Is4() {
				elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
			}
		}
		b.set(nodes, elements)
		exprs = []expr.Any{daddr(reg0), &expr.Lookup{SourceRegister: reg0, SetName: nodes.Name, SetID: nodes.ID}}
	} else {
		exprs = []expr.Any{
			&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		}
	}
	b.rule(pre, append(exprs, proto, port(reg1),
		&expr.Lookup{SourceRegister: reg0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID})...)
}

// service sends a new connection to one of the backends: by chance, or by the client's address where it has affinity.
// The hash keeps a client at its backend as long as the set of backends stays, longer than the timeout demands.
func (b *table) service(chain *nftables.Chain, s spec.Service) {
	var backends []netip.AddrPort
	for _, e := range s.Backends {
		if e.Addr.Addr().Is4() && (e.Local || !s.ExternalLocal) {
			backends = append(backends, e.Addr)
		}
	}
	n := uint32(len(backends))
	for i, e := range backends {
		// Chosen anew in each rule, the i-th of those left has the right chance.
		pick := []expr.Any{&expr.Numgen{Register: reg0, Modulus: n - uint32(i), Type: unix.NFT_NG_RANDOM}}
		want := uint32(0)
		if s.Affinity > 0 {
			pick = []expr.Any{
				&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
				&expr.Hash{SourceRegister: reg1, DestRegister: reg0, Length: 4, Modulus: n, Type: expr.HashTypeJenkins, Seed: 1},
			}
			want = uint32(i)
		}
		b.rule(chain, append(pick,
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(want)},
			&expr.Immediate{Register: reg0, Data: e.Addr().AsSlice()},
			&expr.Immediate{Register: reg1, Data: binaryutil.BigEndian.PutUint16(e.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg0, RegProtoMin: reg1, Specified: true},
		)...)
	}
}

// leaving gives packets the node's address where the answer could not find back: pods that talk to the world, also
// those of other nodes whose way leads through this one, and
// clients of the world that were sent to a backend on another node. Clients sent to a pod of this node keep theirs.
func (b *table) leaving() {
	post := b.c.AddChain(&nftables.Chain{
		Name: "leaving", Table: b.t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	redirected := []expr.Any{
		&expr.Ct{Register: reg0, Key: expr.CtKeySTATUS},
		&expr.Bitwise{
			SourceRegister: reg0, DestRegister: reg0, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(ctDNAT), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
	}
	redirected = append(redirected, match(daddr(reg0), b.d.cfg.PodCIDR, expr.CmpOpNeq)...)
	b.rule(post, append(redirected, &expr.Masq{})...)
	out := match(saddr(reg0), b.d.cfg.ClusterCIDR, expr.CmpOpEq)
	out = append(out, match(daddr(reg0), b.d.cfg.ClusterCIDR, expr.CmpOpNeq)...)
	b.rule(post, append(out, &expr.Masq{})...)
}

// unserved refuses packets to service addresses: whatever a socket may reach there was translated before.
func (b *table) unserved(name string, hook *nftables.ChainHook) {
	chain := b.c.AddChain(&nftables.Chain{
		Name: name, Table: b.t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
	})
	b.rule(chain, append(match(daddr(reg0), b.d.cfg.ServiceCIDR, expr.CmpOpEq),
		&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3 /* port unreachable */})...)
}

func saddr(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

func daddr(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
}

// match compares the address in reg0 with a network.
func match(load expr.Any, p netip.Prefix, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: ipNet(p).Mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg0, Data: p.Masked().Addr().AsSlice()},
	}
}
