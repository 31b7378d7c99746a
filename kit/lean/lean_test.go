package lean

import (
	"bufio"
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// resident sums up what is in memory of the program's own file and of those that it maps for reading, in KiB.
func resident(t *testing.T) (kib int) {
	t.Helper()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
		f := strings.Fields(s.Text())
		switch {
		case len(f) == 6 && strings.Contains(f[0], "-"):
			_, _, inside = unchanged(s.Text(), exe)
		case len(f) == 3 && f[0] == "Rss:" && inside:
			n := 0
			for _, c := range f[1] {
				n = n*10 + int(c-'0')
			}
			kib += n
		case len(f) == 5 && strings.Contains(f[0], "-"):
			inside = false
		}
	}
	return kib
}

func TestRest(t *testing.T) {
	const size = 4 << 20
	f, err := os.Create(t.TempDir() + "/data")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	written := bytes.Repeat([]byte("data"), size/4)
	if _, err := f.Write(written); err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(data) }()
	if !bytes.Equal(data, written) {
		t.Fatal("the file is not what was written")
	}
	before := resident(t)
	if err := Rest(); err != nil {
		t.Fatal(err)
	}
	if after := resident(t); before < size/1024 || after > before-size/1024 {
		t.Errorf("%d KiB of files are in memory, %d before", after, before)
	}
	if !bytes.Equal(data, written) {
		t.Error("the file has changed")
	}
}

func TestUnchanged(t *testing.T) {
	const exe = "/bin/x y"
	for line, want := range map[string]bool{
		"00400000-02dc4000 r-xp 00000000 fe:00 1180030                            /bin/x y":           true,
		"02dc4000-058f2000 r--p 029c4000 fe:00 1180030                            /bin/x y":           true,
		"058f2000-05a0b000 rw-p 054f2000 fe:00 1180030                            /bin/x y":           false,
		"058f2000-05a0b000 r-xp 054f2000 fe:00 1180030                            /lib/y":             false,
		"7ff708c00000-7ff988c00000 r--s 00000000 fe:00 803374                     /data/db":           true,
		"7ff708c00000-7ff988c00000 rw-s 00000000 00:0e 1071                       anon_inode:bpf-map": false,
		"7ff708c00000-7ff988c00000 r--p 00000000 fe:00 803374                     /data/db":           false,
		"c000000000-c00ac00000 rw-p 00000000 00:00 0":                                                 false,
		"nonsense": false,
	} {
		if _, _, ok := unchanged(line, exe); ok != want {
			t.Errorf("%s: %v", line, ok)
		}
	}
	if start, end, _ := unchanged("00400000-02dc4000 r-xp 00000000 fe:00 1 "+exe, exe); start != 0x400000 || end != 0x2dc4000 {
		t.Errorf("%x-%x", start, end)
	}
}
