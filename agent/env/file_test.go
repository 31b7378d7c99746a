package env

import (
	"maps"
	"strings"
	"testing"
)

func TestParseFile(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"":                                 {},
		"\n  \n# a comment\n  # another\n": {},
		"A='1'":                            {"A": "1"},
		"  A = '1'  \nB='#no \"comment\" $A \\n'\n": {"A": "1", "B": `#no "comment" $A \n`},
		"A=''\nM='one\ntwo\n'\nB='2'":               {"A": "", "M": "one\ntwo\n", "B": "2"},
		"A='1'\nA='2'":                              {"A": "2"},
		"A='x=y'":                                   {"A": "x=y"},
	} {
		if got, err := ParseFile(text); err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"A=1": "line 1: the value of A must be", "A=\"1\"": "single quotes", "\nA": "line 2: want NAME", "='x'": "want NAME", "A='x\ny": "line 1: the value of A has no closing",
		"A='a''b'": "nothing may follow", "A='a\nb'$B\n": "line 2: nothing may follow", "A='a' # no": "nothing may follow", "export A": "want NAME",
	} {
		if got, err := ParseFile(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v; want %s", text, got, err, want)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add("A='1'\n# c\nB='x\ny'\n")
	f.Fuzz(func(t *testing.T, text string) {
		vars, err := ParseFile(text)
		for name, v := range vars {
			if err != nil || strings.Contains(v, "'") || name == "" || !strings.Contains(text, v) {
				t.Errorf("%q: %q=%q, %v", text, name, v, err)
			}
		}
	})
}
