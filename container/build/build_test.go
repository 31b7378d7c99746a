package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

// dir makes a build context.
func dir(t *testing.T, files map[string]string) *os.Root {
	t.Helper()
	d := t.TempDir()
	for name, body := range files {
		p := filepath.Join(d, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if strings.HasPrefix(body, "#!") {
			mode = 0o700
		}
		if err := os.WriteFile(p, []byte(body), mode); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// listing shows an image's files: mode, owner, name and content.
func listing(t *testing.T, img v1.Image) string {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	var b strings.Builder
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.IsZero() && h.ModTime.Unix() != 0 {
			t.Errorf("%s has a time: %v", h.Name, h.ModTime)
		}
		fmt.Fprintf(&b, "%o %d:%d %s%s %s\n", h.Mode, h.Uid, h.Gid, h.Name, h.Linkname, body)
	}
}

const example = `# An example.
ARG VERSION=1
FROM scratch
ARG DIR="/srv"
ARG VERSION
ENV MODE=fast GREETING="hello \
world"
ENV OLD form of it
WORKDIR $DIR/app
# a comment \
COPY --chown=1000:1001 a.txt \
  # within
  run.sh ./
COPY sub /data/
COPY ["b c.txt", "/x/${VERSION}.txt"]
ADD *.md docs/
LABEL a=b "c d"="$MODE"
EXPOSE 80 53/udp
USER 1000
STOPSIGNAL SIGINT
ENTRYPOINT ["/srv/app/run.sh"]
CMD echo $HOME
`

func TestBuild(t *testing.T) {
	files := map[string]string{"a.txt": "A", "run.sh": "#!/bin/sh", "sub/one": "1", "sub/deep/two": "2", "b c.txt": "BC", "x.md": "X", "y.md": "Y"}
	build := func() v1.Image {
		img, err := Build(context.Background(), Options{Dockerfile: example, Context: dir(t, files).FS(), Args: map[string]string{"VERSION": "2"}})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img := build()
	for _, want := range []string{
		"644 1000:1001 srv/app/a.txt A\n", "755 1000:1001 srv/app/run.sh #!/bin/sh\n", "644 0:0 data/one 1\n", "644 0:0 data/deep/two 2\n",
		"755 0:0 data/deep", "644 0:0 x/2.txt BC\n", "644 0:0 srv/app/docs/x.md X\n", "644 0:0 srv/app/docs/y.md Y\n",
	} {
		if got := listing(t, img); !strings.Contains(got, want) {
			t.Errorf("the image lacks %q:\n%s", want, got)
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want := v1.Config{
		Env: []string{"MODE=fast", "GREETING=hello  world", "OLD=form of it"}, WorkingDir: "/srv/app", Labels: map[string]string{"a": "b", "c d": "fast"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, User: "1000", StopSignal: "SIGINT",
		Entrypoint: []string{"/srv/app/run.sh"}, Cmd: []string{"/bin/sh", "-c", "echo $HOME"},
	}
	if !reflect.DeepEqual(cf.Config, want) {
		t.Errorf("the configuration is %+v", cf.Config)
	}
	one, err1 := img.Digest()
	two, err2 := build().Digest()
	if one != two || err1 != nil || err2 != nil {
		t.Errorf("the same input made %s and %s (%v, %v)", one, two, err1, err2)
	}
}

func TestBase(t *testing.T) {
	base, err := random.Image(100, 2)
	if err != nil {
		t.Fatal(err)
	}
	if base, err = mutate.Config(base, v1.Config{Env: []string{"A=1", "B=2"}, Cmd: []string{"base"}, User: "7"}); err != nil {
		t.Fatal(err)
	}
	asked := ""
	img, err := Build(context.Background(), Options{
		Dockerfile: "ARG BASE=example.com/base:1\nFROM ${BASE}\nENV A=3\nENTRYPOINT [\"/x\"]", Context: dir(t, nil).FS(),
		Base: func(_ context.Context, ref string) (v1.Image, error) { asked = ref; return base, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if want := (v1.Config{Env: []string{"B=2", "A=3"}, Entrypoint: []string{"/x"}, User: "7"}); asked != "example.com/base:1" || !reflect.DeepEqual(cf.Config, want) || len(cf.RootFS.DiffIDs) != 2 {
		t.Errorf("from %q: %+v", asked, cf)
	}
}

func TestRefused(t *testing.T) {
	root := dir(t, map[string]string{"a": "", "b": "", "c.tar.gz": ""})
	if err := root.Symlink("/etc/passwd", "out"); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"FROM scratch\n\nRUN make":                  "line 3: RUN: this builder runs nothing",
		"FROM scratch\nVOLUME /x":                   "line 2: VOLUME",
		"COPY a /a":                                 "line 1: COPY: it comes before FROM",
		"FROM scratch AS":                           "want the name of one image",
		"FROM scratch AS x\nFROM scratch AS X":      "line 2: FROM: there is a stage called x already",
		"FROM scratch\nCOPY a":                      "want what to copy",
		"FROM scratch\nCOPY none /x":                "none is not there to be copied",
		"FROM scratch\nCOPY ../../etc/passwd /x":    "etc/passwd is not there to be copied",
		"FROM scratch\nCOPY out/ /x":                "out",
		"FROM scratch\nCOPY a b /x":                 "end the destination with /",
		"FROM scratch\nCOPY --from=x a /a":          "it is no stage before this one, and as an image: no base",
		"FROM scratch\nCOPY --from=0 a /a":          "there is no such stage before this one",
		"FROM scratch\nCOPY --parents a /a":         "--parents is not understood",
		"FROM scratch\nCOPY --chown=web a /a":       "give numbers",
		"FROM scratch\nADD https://example.com/x /": "fetch it beforehand",
		"FROM scratch\nADD c.tar.gz /":              "unpack it beforehand",
		"FROM scratch\nEXPOSE nothing":              "is not a port",
		"FROM scratch\nENV A=${B-c}":                "is not understood",
		"FROM scratch\nENV \"A=1":                   "quotation mark",
		"FROM scratch\nUSER":                        "wants an argument",
		"# nothing":                                 "no FROM",
	} {
		_, err := Build(context.Background(), Options{Dockerfile: text, Context: root.FS(), Base: func(context.Context, string) (v1.Image, error) {
			return nil, errors.New("no base")
		}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, not %q", text, err, want)
		}
	}
}

const stages = `ARG WORD=outer
FROM scratch AS one
ARG WORD
COPY --chmod=4755 tool /bin/tool
COPY docs /docs/
WORKDIR /made
ENV A=1
FROM scratch AS unused
COPY tool /unused
FROM one
LABEL word=${WORD:-nothing}
COPY --from=0 /bin/tool /usr/bin/
COPY --from=one --chown=5:6 /docs/*.md /md/
COPY --from=example.com/other:1 /x/y /y
`

func TestStages(t *testing.T) {
	root := dir(t, map[string]string{"tool": "#!tool", "docs/a.md": "A", "docs/b.txt": "B"})
	other, err := Build(context.Background(), Options{Dockerfile: "FROM scratch\nCOPY docs/a.md /x/y", Context: root.FS()})
	if err != nil {
		t.Fatal(err)
	}
	before, err := filepath.Glob(filepath.Join(os.TempDir(), "knarr-build-*"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := Build(context.Background(), Options{Dockerfile: stages, Context: root.FS(), Base: func(_ context.Context, ref string) (v1.Image, error) {
		if ref != "example.com/other:1" {
			return nil, fmt.Errorf("asked for %s", ref)
		}
		return other, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := listing(t, img)
	for _, want := range []string{
		"4755 0:0 bin/tool #!tool\n", "4755 0:0 usr/bin/tool #!tool\n", "644 5:6 md/a.md A\n", "644 0:0 y A\n", "644 0:0 docs/b.txt B\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the image lacks %q:\n%s", want, got)
		}
	}
	for _, no := range []string{"unused", "md/b.txt"} {
		if strings.Contains(got, no) {
			t.Errorf("the image has %s", no)
		}
	}
	cf, err := img.ConfigFile()
	if err != nil || !reflect.DeepEqual(cf.Config.Env, []string{"A=1"}) || cf.Config.WorkingDir != "/made" || cf.Config.Labels["word"] != "nothing" {
		t.Errorf("the configuration is %+v (%v)", cf.Config, err)
	}
	if after, err := filepath.Glob(filepath.Join(os.TempDir(), "knarr-build-*")); err != nil || len(after) > len(before) {
		t.Errorf("left behind: %v (%v)", after, err)
	}
}

func TestIgnore(t *testing.T) {
	for _, c := range []struct {
		rules      string
		has, lacks []string
	}{
		{"# nothing\n\n", nil, []string{"a", "# nothing"}},
		{"*.md", []string{"a.md"}, []string{"docs/a.md", "a.mdx"}},
		{"**/*.md", []string{"a.md", "docs/deep/a.md"}, []string{"a.txt"}},
		{"docs/", []string{"docs", "docs/a"}, []string{"docs2", "x/docs"}},
		{"/temp?\n", []string{"temp1/x"}, []string{"temp", "temp12"}},
		{"*\n!keep\n!docs/*.md\ndocs/b.md", []string{"a", "docs/a.txt", "docs/b.md"}, []string{"keep/x", "docs/a.md"}},
		{"[ab].txt", []string{"a.txt"}, []string{"c.txt"}},
		{"a\\*b", []string{"a*b"}, []string{"axb"}},
		{"../x/../y", []string{"y"}, []string{"x"}},
	} {
		g, err := parseIgnore(c.rules)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.has {
			if !g.has(p) {
				t.Errorf("%q leaves %s in", c.rules, p)
			}
		}
		for _, p := range c.lacks {
			if g.has(p) {
				t.Errorf("%q takes %s out", c.rules, p)
			}
		}
	}
	if _, err := parseIgnore("ok\n[a"); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a bad pattern: %v", err)
	}
	root := dir(t, map[string]string{"a.txt": "A", "b.log": "B", "sub/c.log": "C", "sub/d.txt": "D"})
	img, err := Build(context.Background(), Options{Dockerfile: "FROM scratch\nCOPY . /all/", Context: root.FS(), Ignore: "**/*.log\n!sub/c.log"})
	if err != nil {
		t.Fatal(err)
	}
	if got := listing(t, img); strings.Contains(got, "b.log") || !strings.Contains(got, "sub/c.log C") || !strings.Contains(got, "a.txt A") {
		t.Errorf("the image holds\n%s", got)
	}
	if _, err := Build(context.Background(), Options{Dockerfile: "FROM scratch\nCOPY b.log /x", Context: root.FS(), Ignore: "*.log"}); err == nil || !strings.Contains(err.Error(), ".dockerignore") {
		t.Errorf("copying what is ignored: %v", err)
	}
}

func FuzzIgnore(f *testing.F) {
	f.Add("**/a\n!b[c]", "x/a")
	f.Fuzz(func(t *testing.T, rules, name string) {
		if g, err := parseIgnore(rules); err == nil {
			g.has(name)
		}
	})
}

func FuzzBuild(f *testing.F) {
	f.Add(example)
	f.Add("FROM scratch\nCMD [\"a\"")
	f.Add(stages)
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = Build(context.Background(), Options{Dockerfile: text, Context: os.DirFS(t.TempDir()), Base: func(context.Context, string) (v1.Image, error) {
			return nil, errors.New("no base")
		}})
	})
}

func TestGo(t *testing.T) {
	root := dir(t, map[string]string{
		"go.mod": "module example.com/hello\n\ngo 1.24\n", "cmd/hi/main.go": "package main\n\nfunc main() { println(\"hi\") }\n", "lib/lib.go": "package lib\n",
	})
	var digests []string
	for range 2 {
		img, err := Go(context.Background(), root.Name(), "./cmd/hi")
		if err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d.String())
		cf, err := img.ConfigFile()
		if err != nil || len(cf.Config.Entrypoint) != 1 || cf.Config.Entrypoint[0] != "/hi" {
			t.Errorf("the configuration is %+v (%v)", cf, err)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("the same program gave %v", digests)
	}
	if _, err := Go(context.Background(), root.Name(), "./lib"); err == nil || !strings.Contains(err.Error(), "main package") {
		t.Errorf("a library: %v", err)
	}
}
