package oci

import (
	"encoding/binary"
)

// Flags of the configuration that init.c reads; the two sides must agree.
const (
	flagPivot uint32 = 1 << iota
	flagCgroupNS
	flagProc
	flagTTY
	flagNoNewPrivs
	flagSetns
	flagPause
	flagUser
	flagJoin
	flagCreated
	flagStarting
	flagOwn
)

const (
	configMagic = 0x6b6e7201
	headerSize  = 16*4 + 5*8
)

// initConfig is what init.c is told. encode lays it out as its struct config,
// followed by the data that the header's offsets point to.
type initConfig struct {
	flags            uint32
	uid, gid         uint32
	groups           []uint32
	filter           []byte // compiled seccomp program, 8 bytes an instruction
	masked, readonly []string
	cwd              string
	setns            uint32
	caps             Caps
	nofile           uint64
	program          string // the path to be executed; empty: the first argument is looked up
}

func (c *initConfig) encode() []byte {
	le := binary.LittleEndian
	data := make([]byte, headerSize, headerSize+len(c.filter)+1024)
	place := func(b []byte) uint32 {
		for len(data)%8 != 0 {
			data = append(data, 0)
		}
		off := uint32(len(data))
		data = append(data, b...)
		return off
	}
	var groups []byte
	for _, g := range c.groups {
		groups = le.AppendUint32(groups, g)
	}
	program := uint32(0)
	if c.program != "" {
		program = place(strings0([]string{c.program}))
	}
	words := []uint32{
		configMagic, c.flags, c.uid, c.gid,
		uint32(len(c.groups)), place(groups),
		uint32(len(c.filter) / 8), place(c.filter),
		uint32(len(c.masked)), place(strings0(c.masked)),
		uint32(len(c.readonly)), place(strings0(c.readonly)),
		place(strings0([]string{c.cwd})), c.setns,
		program, 0,
	}
	head := data[:0:headerSize]
	for _, w := range words {
		head = le.AppendUint32(head, w)
	}
	for _, q := range []uint64{c.caps.Bounding, c.caps.Effective, c.caps.Inheritable, c.caps.Ambient, c.nofile} {
		head = le.AppendUint64(head, q)
	}
	return data
}

// strings0 joins strings, each ended by a zero byte.
func strings0(list []string) []byte {
	var b []byte
	for _, s := range list {
		b = append(append(b, s...), 0)
	}
	return b
}
