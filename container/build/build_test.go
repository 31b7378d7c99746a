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
		"FROM scratch\nFROM scratch":                "line 2: FROM: one stage",
		"FROM scratch AS x":                         "want the name of one image",
		"FROM scratch\nCOPY a":                      "want what to copy",
		"FROM scratch\nCOPY none /x":                "none is not in the context",
		"FROM scratch\nCOPY ../../etc/passwd /x":    "etc/passwd is not in the context",
		"FROM scratch\nCOPY out/ /x":                "out",
		"FROM scratch\nCOPY a b /x":                 "end the destination with /",
		"FROM scratch\nCOPY --from=x a /a":          "--from is not understood",
		"FROM scratch\nCOPY --chown=web a /a":       "give numbers",
		"FROM scratch\nADD https://example.com/x /": "fetch it beforehand",
		"FROM scratch\nADD c.tar.gz /":              "unpack it beforehand",
		"FROM scratch\nEXPOSE nothing":              "is not a port",
		"FROM scratch\nENV A=${B-c}":                "is not understood",
		"FROM scratch\nENV \"A=1":                   "quotation mark",
		"FROM scratch\nUSER":                        "wants an argument",
		"# nothing":                                 "no FROM",
	} {
		_, err := Build(context.Background(), Options{Dockerfile: text, Context: root.FS()})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, not %q", text, err, want)
		}
	}
}

func FuzzBuild(f *testing.F) {
	f.Add(example)
	f.Add("FROM scratch\nCMD [\"a\"")
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
