package oci

import (
	"encoding/binary"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// seccompArch is one system call convention.
type seccompArch struct {
	audit   uint32
	numbers map[string]uint32
	names   []string
	x32     bool // numbers with bit 30 set belong to another convention
}

// Offsets into struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

type bpf struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

const (
	ldAbs = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	jeq   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jgt   = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	jge   = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	ja    = unix.BPF_JMP | unix.BPF_JA
	andK  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	ret   = unix.BPF_RET | unix.BPF_K
)

// CompileSeccomp turns an OCI seccomp profile into the kernel's classic BPF.
// Names that this kernel's architecture does not know are passed over, as
// profiles name the calls of all of them. Rules are tried in the profile's
// order, those with conditions before those without.
//
// The filter is a chain of comparisons; the kernel itself turns the calls that
// are always allowed into a bitmap (5.11 and later), so the chain's length
// costs these nothing.
func CompileSeccomp(p *specs.LinuxSeccomp) ([]byte, error) {
	fallback, err := seccompAction(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	prog := []bpf{{ldAbs, 0, 0, dataArch}}
	for _, arch := range seccompArches() {
		body, err := arch.compile(p, fallback)
		if err != nil {
			return nil, err
		}
		// Skipping the body is a long jump, which conditional jumps are not.
		prog = append(prog, bpf{jeq, 1, 0, arch.audit}, bpf{ja, 0, 0, uint32(len(body))})
		prog = append(prog, body...)
	}
	prog = append(prog, bpf{ret, 0, 0, unix.SECCOMP_RET_KILL_PROCESS})
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("the seccomp profile is too long: %d instructions, the kernel takes %d", len(prog), unix.BPF_MAXINSNS)
	}
	out := make([]byte, 0, 8*len(prog))
	for _, i := range prog {
		out = binary.NativeEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.NativeEndian.AppendUint32(out, i.k)
	}
	return out, nil
}

// compile writes the comparisons for one architecture. Each begins with the
// call's number in the accumulator.
func (a *seccompArch) compile(p *specs.LinuxSeccomp, fallback uint32) ([]bpf, error) {
	body := []bpf{{ldAbs, 0, 0, dataNumber}}
	if a.x32 {
		body = append(body, bpf{jge, 0, 1, 0x40000000}, bpf{ret, 0, 0, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	for _, conditional := range []bool{true, false} {
		for _, rule := range p.Syscalls {
			if (len(rule.Args) > 0) != conditional {
				continue
			}
			action, err := seccompAction(rule.Action, rule.ErrnoRet)
			if err != nil {
				return nil, err
			}
			for _, name := range rule.Names {
				nr, ok := a.numbers[name]
				if !ok {
					continue
				}
				code, err := ruleCode(nr, rule.Args, action)
				if err != nil {
					return nil, fmt.Errorf("seccomp rule for %s: %w", name, err)
				}
				body = append(body, code...)
			}
		}
	}
	return append(body, bpf{ret, 0, 0, fallback}), nil
}

// ruleCode matches one call with all of its conditions. Where a condition does
// not hold, control goes to the end with the number loaded again.
func ruleCode(nr uint32, args []specs.LinuxSeccompArg, action uint32) ([]bpf, error) {
	if len(args) == 0 {
		return []bpf{{jeq, 0, 1, nr}, {ret, 0, 0, action}}, nil
	}
	var tests []bpf
	for _, arg := range args {
		t, err := argCode(arg)
		if err != nil {
			return nil, err
		}
		tests = append(tests, t...)
	}
	tests = append(tests, bpf{ret, 0, 0, action})
	// Layout: number?, tests (failures marked 0xff), return, reload.
	code := append([]bpf{{jeq, 0, uint8(len(tests) + 1), nr}}, tests...)
	for i := 1; i < len(code); i++ {
		away := uint8(len(code) - i - 1)
		if code[i].code&7 == unix.BPF_JMP {
			if code[i].jt == 0xff {
				code[i].jt = away
			}
			if code[i].jf == 0xff {
				code[i].jf = away
			}
		}
	}
	code[0].jf = uint8(len(code) - 1)
	if len(code) > 250 {
		return nil, fmt.Errorf("too many conditions (%d)", len(args))
	}
	return append(code, bpf{ldAbs, 0, 0, dataNumber}), nil
}

// argCode tests a 64-bit argument in two halves. Jumps to 0xff mean "does not
// match"; falling off the end means that it does.
func argCode(arg specs.LinuxSeccompArg) ([]bpf, error) {
	if arg.Index > 5 {
		return nil, fmt.Errorf("argument %d: a call has six, counted from 0", arg.Index)
	}
	const no = 0xff
	lo, hi := uint32(dataArgs+8*arg.Index), uint32(dataArgs+8*arg.Index+4)
	vl, vh := uint32(arg.Value), uint32(arg.Value>>32)
	switch arg.Op {
	case specs.OpEqualTo:
		return []bpf{{ldAbs, 0, 0, hi}, {jeq, 0, no, vh}, {ldAbs, 0, 0, lo}, {jeq, 0, no, vl}}, nil
	case specs.OpNotEqual:
		return []bpf{{ldAbs, 0, 0, hi}, {jeq, 0, 2, vh}, {ldAbs, 0, 0, lo}, {jeq, no, 0, vl}}, nil
	case specs.OpMaskedEqual: // (argument & Value) == ValueTwo
		return []bpf{
			{ldAbs, 0, 0, hi}, {andK, 0, 0, vh}, {jeq, 0, no, uint32(arg.ValueTwo >> 32)},
			{ldAbs, 0, 0, lo}, {andK, 0, 0, vl}, {jeq, 0, no, uint32(arg.ValueTwo)},
		}, nil
	case specs.OpGreaterThan:
		return []bpf{{ldAbs, 0, 0, hi}, {jgt, 3, 0, vh}, {jeq, 0, no, vh}, {ldAbs, 0, 0, lo}, {jgt, 0, no, vl}}, nil
	case specs.OpGreaterEqual:
		return []bpf{{ldAbs, 0, 0, hi}, {jgt, 3, 0, vh}, {jeq, 0, no, vh}, {ldAbs, 0, 0, lo}, {jge, 0, no, vl}}, nil
	case specs.OpLessThan:
		return []bpf{{ldAbs, 0, 0, hi}, {jgt, no, 0, vh}, {jeq, 0, 2, vh}, {ldAbs, 0, 0, lo}, {jge, no, 0, vl}}, nil
	case specs.OpLessEqual:
		return []bpf{{ldAbs, 0, 0, hi}, {jgt, no, 0, vh}, {jeq, 0, 2, vh}, {ldAbs, 0, 0, lo}, {jgt, no, 0, vl}}, nil
	}
	return nil, fmt.Errorf("unknown operator %q", arg.Op)
}

func seccompAction(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	code := uint32(unix.EPERM)
	if errno != nil {
		code = uint32(*errno)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | code&0xfff, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | code&0xffff, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("seccomp action %q is not supported", a)
}
