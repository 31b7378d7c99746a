package userns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPodsHoldTheirRangesThroughARestart(t *testing.T) {
	root := t.TempDir()
	slots := Slots{First: 65536, PerPod: 65536, Pods: 3}
	open := func() *Holder {
		h, err := New(slots, root)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	hold := func(h *Holder, uid string, want uint32) {
		t.Helper()
		if r, err := h.Hold(uid); err != nil || r != (Range{First: want, Count: 65536}) {
			t.Errorf("pod %s: %v, %v; want from %d", uid, r, err, want)
		}
	}
	h := open()
	hold(h, "a", 65536)
	hold(h, "b", 131072)
	hold(h, "a", 65536)
	if err := h.Release("a"); err != nil {
		t.Fatal(err)
	}
	h = open()
	hold(h, "b", 131072)
	hold(h, "c", 65536)
	hold(h, "d", 196608)
	if _, err := h.Hold("e"); err == nil || !strings.Contains(err.Error(), "all 3 ranges") {
		t.Errorf("a fourth pod: %v", err)
	}
	for range 2 {
		if err := h.Release("d"); err != nil {
			t.Error(err)
		}
	}
	hold(h, "e", 196608)
	// Another division does not hand out what is held.
	slots = Slots{First: 65536, PerPod: 131072, Pods: 2}
	h = open()
	if _, err := h.Hold("f"); err == nil {
		t.Error("a range was given twice")
	}
}

func TestBrokenRecordsAreNamed(t *testing.T) {
	for _, text := range []string{"", "{}", `{"uidMappings":[{"hostId":1,"length":2}],"gidMappings":[{"hostId":2,"length":2}]}`} {
		root := t.TempDir()
		os.Mkdir(filepath.Join(root, "u1"), 0o700)
		os.WriteFile(filepath.Join(root, "u1", "userns"), []byte(text), 0o600)
		if _, err := New(Slots{65536, 65536, 1}, root); err == nil || !strings.Contains(err.Error(), "u1") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSlotsAreChecked(t *testing.T) {
	for s, ok := range map[Slots]bool{
		{65536, 65536, 110}: true, {0, 65536, 1}: false, {65536, 1000, 1}: false, {65537, 65536, 1}: false,
		{65536, 65536, 0}: false, {65536, 65536, 65535}: true, {65536, 65536, 65536}: false, {65536, 131072, 10}: true,
	} {
		if err := s.Validate(); (err == nil) != ok {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestSubordinateRanges(t *testing.T) {
	for _, tc := range []struct {
		uids, gids string
		want       Range
		found      bool
		err        string
	}{
		{uids: "kubelet:65536:7208960\n", gids: "other:1:1\nkubelet:65536:7208960\n", want: Range{65536, 7208960}, found: true},
		{uids: "other:65536:65536\n"},
		{uids: "kubelet:65536:1\n", gids: "kubelet:131072:1\n", err: "same range"},
		{uids: "kubelet:65536:1\n", gids: "", err: "same range"},
		{uids: "kubelet:x:1\n", err: "want USER:FIRST:COUNT"},
		{uids: "kubelet:1:1\nkubelet:2:2\n", err: "more than one"},
	} {
		dir := t.TempDir()
		u, g := filepath.Join(dir, "u"), filepath.Join(dir, "g")
		os.WriteFile(u, []byte(tc.uids), 0o600)
		os.WriteFile(g, []byte(tc.gids), 0o600)
		r, found, err := Subordinate("kubelet", u, g)
		if r != tc.want || found != tc.found || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%+v: %v %v %v", tc, r, found, err)
		}
	}
	if _, found, err := Subordinate("kubelet", "/nowhere", "/nowhere"); found || err != nil {
		t.Error(found, err)
	}
}
