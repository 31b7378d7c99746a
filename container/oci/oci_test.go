package oci

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// verdict runs a compiled filter over one call, as the kernel would.
func verdict(t *testing.T, prog []byte, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	raw := make([]bpf, len(prog)/8)
	for i := range raw {
		p := prog[8*i:]
		raw[i] = bpf{binary.NativeEndian.Uint16(p), p[2], p[3], binary.NativeEndian.Uint32(p[4:])}
	}
	// struct seccomp_data; words are compared as numbers, so any one byte order will do.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[dataNumber:], nr)
	binary.BigEndian.PutUint32(data[dataArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[dataArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[dataArgs+8*i+4:], uint32(a>>32))
	}
	pc, acc := 0, uint32(0)
	for {
		i := raw[pc]
		pc++
		jump := func(yes bool) {
			if yes {
				pc += int(i.jt)
			} else {
				pc += int(i.jf)
			}
		}
		switch i.code {
		case ldAbs:
			acc = binary.BigEndian.Uint32(data[i.k:])
		case jeq:
			jump(acc == i.k)
		case jgt:
			jump(acc > i.k)
		case jge:
			jump(acc >= i.k)
		case ja:
			pc += int(i.k)
		case andK:
			acc &= i.k
		case ret:
			return i.k
		default:
			t.Fatalf("unknown instruction %+v", i)
		}
	}
}

func TestDefaultSeccomp(t *testing.T) {
	const allow, eperm, enosys = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | 1, unix.SECCOMP_RET_ERRNO | 38
	arch := seccompArches()[0]
	for _, c := range []struct {
		caps uint64
		name string
		args []uint64
		want uint32
	}{
		{DefaultCaps, "read", nil, allow},
		{DefaultCaps, "execve", nil, allow},
		{DefaultCaps, "mount", nil, eperm},
		{DefaultCaps, "unshare", nil, eperm},
		{DefaultCaps, "keyctl", nil, eperm},
		{DefaultCaps, "bpf", nil, eperm},
		{DefaultCaps, "chroot", nil, allow},
		{0, "chroot", nil, eperm},
		{AllCaps, "mount", nil, allow},
		{DefaultCaps, "clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD}, allow},
		{DefaultCaps, "clone", []uint64{unix.CLONE_NEWUSER}, eperm},
		{AllCaps, "clone", []uint64{unix.CLONE_NEWUSER}, allow},
		{DefaultCaps, "clone3", nil, enosys},
		{DefaultCaps, "socket", []uint64{unix.AF_INET}, allow},
		{DefaultCaps, "socket", []uint64{unix.AF_VSOCK}, eperm},
		{DefaultCaps, "personality", []uint64{0x20008}, allow},
		{DefaultCaps, "personality", []uint64{0x1}, eperm},
		{DefaultCaps, "personality", []uint64{1 << 32}, eperm},
	} {
		prog, err := CompileSeccomp(DefaultSeccomp(c.caps))
		if err != nil {
			t.Fatal(err)
		}
		nr, ok := arch.numbers[c.name]
		if !ok {
			t.Fatalf("no number for %s", c.name)
		}
		if got := verdict(t, prog, arch.audit, nr, c.args...); got != c.want {
			t.Errorf("%s%v with capabilities %x: %x, not %x", c.name, c.args, c.caps, got, c.want)
		}
		if got := verdict(t, prog, 12345, nr); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("a foreign architecture got %x", got)
		}
	}
}

func TestSeccompOperators(t *testing.T) {
	arch := seccompArches()[0]
	const big = 5 << 32
	for _, c := range []struct {
		op      specs.LinuxSeccompOperator
		matches []uint64
		others  []uint64
	}{
		{specs.OpEqualTo, []uint64{big + 7}, []uint64{7, big, big + 8}},
		{specs.OpNotEqual, []uint64{7, big, big + 8}, []uint64{big + 7}},
		{specs.OpGreaterThan, []uint64{big + 8, 6 << 32}, []uint64{big + 7, 8, 4<<32 + 9}},
		{specs.OpGreaterEqual, []uint64{big + 7, 6 << 32}, []uint64{big + 6, 8}},
		{specs.OpLessThan, []uint64{big + 6, 8}, []uint64{big + 7, 6 << 32}},
		{specs.OpLessEqual, []uint64{big + 7, 8}, []uint64{big + 8, 6 << 32}},
	} {
		prog, err := CompileSeccomp(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{
			Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 1, Value: big + 7, Op: c.op}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range c.matches {
			if verdict(t, prog, arch.audit, arch.numbers["read"], 0, v) != unix.SECCOMP_RET_ALLOW {
				t.Errorf("%s: %x does not match", c.op, v)
			}
		}
		for _, v := range c.others {
			if verdict(t, prog, arch.audit, arch.numbers["read"], 0, v) == unix.SECCOMP_RET_ALLOW {
				t.Errorf("%s: %x matches", c.op, v)
			}
		}
	}
}

func TestLookup(t *testing.T) {
	top, low := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{
		filepath.Join(low, "etc/passwd"): "root:x:0:0::/root:\nold:x:5:5::/old:\n",
		filepath.Join(low, "etc/group"):  "g:x:7:web,other\nweb:x:1001:\n",
		filepath.Join(top, "etc/passwd"): "root:x:0:0::/root:\nbroken\nweb:x:1000:1001::/home/web:/bin/sh\n",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	layers := []string{top, low}
	for user, want := range map[string]Account{
		"web":  {1000, 1001, []uint32{7}, "/home/web"},
		"1000": {1000, 1001, []uint32{7}, "/home/web"},
		"4242": {UID: 4242, Home: "/"},
	} {
		if got, err := Lookup(layers, user); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %+v (%v)", user, got, err)
		}
	}
	if _, err := Lookup(layers, "old"); err == nil {
		t.Error("a user of a hidden file was found")
	}
	if gid, err := LookupGroup(layers, "g"); gid != 7 || err != nil {
		t.Errorf("the group is %d (%v)", gid, err)
	}
}

func TestParseCaps(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  uint64
		ok    bool
	}{
		{[]string{"CAP_CHOWN", "net_raw"}, 1 | 1<<13, true},
		{[]string{"ALL"}, AllCaps, true},
		{[]string{"NONE_SUCH"}, 0, false},
	} {
		if got, err := ParseCaps(c.names); got != c.want || (err == nil) != c.ok {
			t.Errorf("%v: %x, %v", c.names, got, err)
		}
	}
}

func TestHolder(t *testing.T) {
	dir, err := os.MkdirTemp("", "knarr-h-") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	h, err := OpenHolder(socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Put("key", r); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := w.WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if h, err = OpenHolder(socket, nil); err != nil {
		t.Fatal(err)
	}
	if keys, err := h.List(); err != nil || len(keys) != 1 || keys[0] != "key" {
		t.Errorf("keys %v (%v)", keys, err)
	}
	files, err := h.Get("key")
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	buf := make([]byte, 8)
	if n, err := files[0].Read(buf); string(buf[:n]) != "kept" {
		t.Errorf("read %q (%v)", buf[:n], err)
	}
	closeAll(files)
	if err := h.Drop("key"); err != nil {
		t.Error(err)
	}
	if _, err := h.Get("key"); err == nil {
		t.Error("a dropped key is still held")
	}
	if err := h.Quit(); err != nil {
		t.Error(err)
	}
}
