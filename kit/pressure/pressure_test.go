package pressure

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	p, ok := parse("some avg10=1.50 avg60=0.25 avg300=0.01 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
	want := Pressure{Some: Stall{1.5, 0.25, 0.01, 1234 * time.Microsecond}, Full: Stall{Total: 7 * time.Microsecond}}
	if !ok || p != want {
		t.Errorf("read %+v, %v", p, ok)
	}
	for _, text := range []string{"", "some avg10=x total=1", "many avg10=1 total=1"} {
		if p, ok := parse(text); ok {
			t.Errorf("%q is read as %+v", text, p)
		}
	}
}
