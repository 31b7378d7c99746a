package cgroup

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Device is one permission: a device, or with Major or Minor -1 any number.
type Device struct {
	Block        bool
	Major, Minor int64
	Access       string // of the letters r, w and m
}

// defaultDevices are what every container may use: the nodes of the OCI
// specification, terminals, and making nodes (using them is another matter).
var defaultDevices = []Device{
	{false, -1, -1, "m"}, {true, -1, -1, "m"},
	{false, 1, 3, "rwm"}, {false, 1, 5, "rwm"}, {false, 1, 7, "rwm"}, {false, 1, 8, "rwm"}, {false, 1, 9, "rwm"},
	{false, 5, 0, "rwm"}, {false, 5, 1, "rwm"}, {false, 5, 2, "rwm"}, {false, 136, -1, "rwm"},
}

// AllowDevices attaches a program to the group's v2 folder that denies all
// devices but the default ones and extra. The program lives as long as the
// group. Hosts without a v2 hierarchy use v1's devices controller.
func (g Group) AllowDevices(extra []Device) error {
	rules := append(append([]Device(nil), defaultDevices...), extra...)
	if g.v2() == "" {
		return g.allowV1(rules)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "knarr_devices", Type: ebpf.CGroupDevice, License: "Apache-2.0", Instructions: deviceProgram(rules),
	})
	if err != nil {
		return fmt.Errorf("loading the device rules of %s: %w", g.path, err)
	}
	defer prog.Close()
	dir, err := os.Open(g.v2())
	if err != nil {
		return err
	}
	defer dir.Close()
	err = link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: int(dir.Fd()), Program: prog, Attach: ebpf.AttachCGroupDevice, Flags: unix.BPF_F_ALLOW_MULTI,
	})
	if err != nil {
		return fmt.Errorf("attaching the device rules of %s: %w", g.path, err)
	}
	return nil
}

// deviceProgram reads struct bpf_cgroup_dev_ctx {access_type, major, minor},
// where access_type is access<<16 | type.
func deviceProgram(rules []Device) asm.Instructions {
	prog := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.And.Imm32(asm.R2, 0xffff), // type
		asm.RSh.Imm32(asm.R3, 16),     // access
		asm.LoadMem(asm.R4, asm.R1, 4, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, 8, asm.Word),
	}
	for i, r := range rules {
		kind, next := int32(unix.BPF_DEVCG_DEV_CHAR), fmt.Sprintf("rule%d", i+1)
		if r.Block {
			kind = unix.BPF_DEVCG_DEV_BLOCK
		}
		var access int32
		for _, c := range r.Access {
			switch c {
			case 'r':
				access |= unix.BPF_DEVCG_ACC_READ
			case 'w':
				access |= unix.BPF_DEVCG_ACC_WRITE
			case 'm':
				access |= unix.BPF_DEVCG_ACC_MKNOD
			}
		}
		first := len(prog)
		prog = append(prog,
			asm.JNE.Imm(asm.R2, kind, next),
			asm.Mov.Reg(asm.R6, asm.R3),
			asm.And.Imm32(asm.R6, ^access),
			asm.JNE.Imm(asm.R6, 0, next)) // asks for more than the rule grants
		if r.Major >= 0 {
			prog = append(prog, asm.JNE.Imm(asm.R4, int32(r.Major), next))
		}
		if r.Minor >= 0 {
			prog = append(prog, asm.JNE.Imm(asm.R5, int32(r.Minor), next))
		}
		prog = append(prog, asm.Mov.Imm(asm.R0, 1), asm.Return())
		if i > 0 {
			prog[first] = prog[first].WithSymbol(fmt.Sprintf("rule%d", i))
		}
	}
	return append(prog, asm.Mov.Imm(asm.R0, 0).WithSymbol(fmt.Sprintf("rule%d", len(rules))), asm.Return())
}

func (g Group) allowV1(rules []Device) error {
	dir := g.v1("devices")
	if dir == "" {
		return errors.New("this host has neither cgroup v2 nor the devices controller, so devices cannot be denied")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(dir+"/devices.deny", []byte("a"), 0); err != nil {
		return err
	}
	for _, r := range rules {
		if err := os.WriteFile(dir+"/devices.allow", []byte(r.v1()), 0); err != nil {
			return fmt.Errorf("allowing device %s: %w", r.v1(), err)
		}
	}
	return nil
}

func (d Device) v1() string {
	kind := "c"
	if d.Block {
		kind = "b"
	}
	n := func(v int64) string {
		if v < 0 {
			return "*"
		}
		return fmt.Sprint(v)
	}
	return fmt.Sprintf("%s %s:%s %s", kind, n(d.Major), n(d.Minor), d.Access)
}
