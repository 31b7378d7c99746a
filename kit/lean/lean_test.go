package lean

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// resident sums up what is in memory of the program's own file, in KiB.
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
			_, _, inside = constant(s.Text(), exe)
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
	before := resident(t)
	if err := Rest(); err != nil {
		t.Fatal(err)
	}
	if after := resident(t); before == 0 || after >= before {
		t.Errorf("%d KiB of the program's file are in memory, %d before", after, before)
	}
}

func TestConstant(t *testing.T) {
	const exe = "/bin/x y"
	for line, want := range map[string]bool{
		"00400000-02dc4000 r-xp 00000000 fe:00 1180030                            /bin/x y": true,
		"02dc4000-058f2000 r--p 029c4000 fe:00 1180030                            /bin/x y": true,
		"058f2000-05a0b000 rw-p 054f2000 fe:00 1180030                            /bin/x y": false,
		"058f2000-05a0b000 r-xp 054f2000 fe:00 1180030                            /lib/y":   false,
		"c000000000-c00ac00000 rw-p 00000000 00:00 0":                                       false,
		"nonsense": false,
	} {
		if _, _, ok := constant(line, exe); ok != want {
			t.Errorf("%s: %v", line, ok)
		}
	}
	if start, end, _ := constant("00400000-02dc4000 r-xp 00000000 fe:00 1 "+exe, exe); start != 0x400000 || end != 0x2dc4000 {
		t.Errorf("%x-%x", start, end)
	}
}
