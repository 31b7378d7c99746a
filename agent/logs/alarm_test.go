package logs

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestAlarmRingsOnce(t *testing.T) {
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func() {
		t.Helper()
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := a.Arm(path); err != nil {
			t.Fatal(err)
		}
		write()
		select {
		case <-a.C():
		case <-time.After(10 * time.Second):
			t.Fatal("it did not ring")
		}
		// The watch has gone; its end is told as well, by the same read or another.
		for range 100 {
			write()
		}
		select {
		case <-a.C():
		default:
		}
	}
	if err := a.Arm("/nowhere"); err == nil {
		t.Error("a file that is not there was armed")
	}
}
