// Package arch holds the import table of ARCHITECTURE.md.
package arch

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "knarr.dev/knarr/"

// rule says what a folder may import of knarr, beside itself.
type rule struct {
	folder string
	may    []string // folders, or "*"
	why    string
}

// rules are read from top to bottom; the first whose folder matches holds.
var rules = []rule{
	{"cmd", []string{"*"}, "the one place where parts are wired together"},
	{"test", []string{"*"}, "tests use everything"},
	{"kit", nil, "leaf packages"},
	{"cri", nil, "a contract, no logic"},
	{"api", []string{"kit"}, "pure data"},
	{"store", []string{"kit"}, "sees bytes and revisions, never kinds"},
	{"datapath", []string{"kit"}, "knows the kernel, not the API"},
	{"volume", []string{"kit"}, "serves any agent"},
	{"dns", []string{"kit"}, "answers from its Source alone"},
	{"apiserver", []string{"api", "store", "kit"}, "the only reader of the store"},
	{"client", []string{"api", "kit"}, "never apiserver: the in-process client is wired in cmd"},
	{"controller/engine", []string{"client", "api", "kit"}, "runs controllers without knowing them"},
	{"controller", []string{"client", "api", "kit", "controller/engine"}, "controllers know each other only through the API"},
	{"scheduler", []string{"client", "api", "kit"}, ""},
	{"delivery", []string{"client", "api", "kit"}, ""},
	{"agent", []string{"client", "api", "cri", "datapath/spec", "volume", "kit"}, "never container: it drives any runtime"},
	{"container", []string{"cri", "kit"}, "never api: it serves any kubelet"},
	{"web", []string{"kit"}, "speaks HTTP only"},
}

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 20 {
		t.Fatalf("only %d packages were listed", len(pkgs))
	}
	return pkgs
}

func within(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if from == strings.TrimSuffix(module, "/") {
			continue // main
		}
		r := find(from)
		if r == nil {
			t.Errorf("%s: no rule: add its folder to ARCHITECTURE.md and here", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module)
			if ours && !allowed(r, from, to) {
				t.Errorf("%s imports %s, but %s may import only %v: %s", from, to, r.folder, r.may, r.why)
			}
		}
	}
}

func find(path string) *rule {
	for i := range rules {
		if within(path, rules[i].folder) {
			return &rules[i]
		}
	}
	return nil
}

func allowed(r *rule, from, to string) bool {
	for _, m := range r.may {
		if m == "*" || within(to, m) {
			return true
		}
	}
	if r.folder == "controller" && from != "controller" {
		// siblings: the same controller's folder only
		mine := strings.Join(strings.SplitN(from, "/", 3)[:2], "/")
		return within(to, mine)
	}
	return within(to, r.folder)
}

// Every package says what it is for.
func TestPackageDocs(t *testing.T) {
	fset := token.NewFileSet()
	for _, p := range list(t) {
		documented := len(p.GoFiles) == 0
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			documented = documented || hasDoc(file)
		}
		if !documented {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func hasDoc(f *ast.File) bool { return f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" }
