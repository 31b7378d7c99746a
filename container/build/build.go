package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// Options of a build from a Dockerfile.
type Options struct {
	Dockerfile string // its text
	// Context holds the files that COPY and ADD name; links that lead out of it
	// must not open (os.Root has that property).
	Context fs.FS
	Ignore  string            // the text of .dockerignore
	Args    map[string]string // values for ARG
	// Base gets the image that FROM names; scratch is not asked for.
	Base func(ctx context.Context, ref string) (v1.Image, error)
}

// builder is a build under way.
type builder struct {
	Options
	image  v1.Image
	config v1.Config
	args   map[string]string // those declared in the stage
	global map[string]string // and before the first
	begun  bool              // FROM was there
	name   string            // of the stage
	stages []stage           // those before
	ignore ignore

	unpacked map[string]*os.Root // files of images to copy from
	folders  []string
}

// Build makes the image that the Dockerfile describes. Instructions that would
// need to run something, and those unknown, are refused by their line.
func Build(ctx context.Context, o Options) (img v1.Image, err error) {
	list, err := parse(o.Dockerfile)
	if err != nil {
		return nil, err
	}
	b := &builder{Options: o, args: map[string]string{}, global: map[string]string{}, unpacked: map[string]*os.Root{}}
	if b.ignore, err = parseIgnore(o.Ignore); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for n := range list {
		i := &list[n]
		do := instructions[i.name]
		switch {
		case do == nil:
			return nil, i.fail("this builder runs nothing and knows %s alone", strings.Join(slices.Sorted(maps.Keys(instructions)), ", "))
		case !b.begun && i.name != "FROM" && i.name != "ARG":
			return nil, i.fail("it comes before FROM")
		}
		if err := do(b, ctx, i); err != nil {
			return nil, i.fail("%w", err)
		}
	}
	if !b.begun {
		return nil, errors.New("the Dockerfile has no FROM")
	}
	return finish(b.image, b.config)
}

// finish gives the image its configuration, without anything of the time or the machine.
func finish(img v1.Image, config v1.Config) (v1.Image, error) {
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of the image: %w", err)
	}
	file = file.DeepCopy()
	file.Config, file.Created = config, v1.Time{}
	if file.OS == "" {
		file.OS, file.Architecture = "linux", runtime.GOARCH
	}
	return mutate.ConfigFile(img, file)
}

var instructions = map[string]func(*builder, context.Context, *instruction) error{
	"FROM": (*builder).from, "ARG": (*builder).arg, "COPY": (*builder).copy, "ADD": (*builder).add, "ENV": (*builder).env, "LABEL": (*builder).label,
	"WORKDIR": (*builder).workdir,
	"USER": func(b *builder, _ context.Context, i *instruction) (err error) {
		b.config.User, err = b.expand(i.rest)
		return
	},
	"STOPSIGNAL": func(b *builder, _ context.Context, i *instruction) (err error) {
		b.config.StopSignal, err = b.expand(i.rest)
		return
	},
	"CMD": func(b *builder, _ context.Context, i *instruction) error { b.config.Cmd = i.command(); return nil },
	"ENTRYPOINT": func(b *builder, _ context.Context, i *instruction) error {
		b.config.Entrypoint, b.config.Cmd = i.command(), nil // the base's command was for the base's entrypoint
		return nil
	},
	"EXPOSE": (*builder).expose,
}

func (b *builder) expand(s string) (string, error) {
	return expand(s, func(name string) (string, bool) {
		for _, kv := range b.config.Env {
			if k, v, _ := strings.Cut(kv, "="); k == name {
				return v, true
			}
		}
		v, ok := b.args[name]
		if !ok && !b.begun {
			v, ok = b.global[name]
		}
		return v, ok
	})
}

func (b *builder) from(ctx context.Context, i *instruction) error {
	ref, err := expand(i.rest, func(name string) (string, bool) { v, ok := b.global[name]; return v, ok })
	if err != nil {
		return err
	}
	f := strings.Fields(ref)
	if len(f) == 3 && strings.EqualFold(f[1], "AS") {
		f = []string{f[0], strings.ToLower(f[2])}
	} else if len(f) == 1 {
		f = append(f, "")
	}
	if len(f) != 2 || strings.EqualFold(f[1], "AS") || len(i.flags) > 0 {
		return errors.New("want the name of one image, and AS with a name if other stages copy from it")
	}
	if err := b.begin(f[1]); err != nil {
		return err
	}
	b.image = empty.Image
	if f[0] == "scratch" {
		return nil
	}
	if earlier, ok := b.stageOf(f[0]); ok {
		b.image = earlier
	} else if b.image, err = b.Base(ctx, f[0]); err != nil {
		return err
	}
	file, err := b.image.ConfigFile()
	if err != nil {
		return fmt.Errorf("reading the configuration of %s: %w", f[0], err)
	}
	b.config = *file.Config.DeepCopy()
	return nil
}

func (b *builder) arg(_ context.Context, i *instruction) error {
	name, value, assigned := strings.Cut(i.rest, "=")
	into := b.args
	if !b.begun {
		into = b.global
	}
	if given, ok := b.Args[name]; ok {
		into[name] = given
		return nil
	}
	if outer, ok := b.global[name]; ok && !assigned {
		into[name] = outer
		return nil
	}
	parts, err := words(value)
	if err != nil {
		return err
	}
	into[name], err = b.expand(strings.Join(parts, " "))
	return err
}

// pairs reads "key=value key=value", or "key value" as ENV once was.
func (b *builder) pairs(i *instruction) ([][2]string, error) {
	list, err := words(i.rest)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(list[0], "=") {
		key, value, _ := strings.Cut(i.rest, " ")
		value, err = b.expand(strings.TrimSpace(value))
		return [][2]string{{key, value}}, err
	}
	var pairs [][2]string
	for _, kv := range list {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q is not key=value", kv)
		}
		if value, err = b.expand(value); err != nil {
			return nil, err
		}
		pairs = append(pairs, [2]string{key, value})
	}
	return pairs, nil
}

func (b *builder) env(_ context.Context, i *instruction) error {
	pairs, err := b.pairs(i)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		b.config.Env = slices.DeleteFunc(b.config.Env, func(kv string) bool { return strings.HasPrefix(kv, p[0]+"=") })
		b.config.Env = append(b.config.Env, p[0]+"="+p[1])
	}
	return nil
}

func (b *builder) label(_ context.Context, i *instruction) error {
	pairs, err := b.pairs(i)
	if err != nil {
		return err
	}
	if b.config.Labels == nil {
		b.config.Labels = map[string]string{}
	}
	for _, p := range pairs {
		b.config.Labels[p[0]] = p[1]
	}
	return nil
}

func (b *builder) expose(_ context.Context, i *instruction) error {
	text, err := b.expand(i.rest)
	if err != nil {
		return err
	}
	if b.config.ExposedPorts == nil {
		b.config.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range strings.Fields(text) {
		port, proto, ok := strings.Cut(p, "/")
		if !ok {
			proto = "tcp"
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || proto != "tcp" && proto != "udp" && proto != "sctp" {
			return fmt.Errorf("%q is not a port", p)
		}
		b.config.ExposedPorts[port+"/"+proto] = struct{}{}
	}
	return nil
}

func (b *builder) workdir(_ context.Context, i *instruction) error {
	dir, err := b.expand(i.rest)
	if err != nil {
		return err
	}
	b.config.WorkingDir = b.inside(dir)
	l := layer{}
	if name := strings.TrimPrefix(b.config.WorkingDir, "/"); name != "" {
		l.folder(name, 0o755)
	}
	return b.append(l)
}

// inside makes a path of the image absolute.
func (b *builder) inside(p string) string {
	if !path.IsAbs(p) {
		p = path.Join("/", b.config.WorkingDir, p)
	}
	return path.Clean(p)
}

func (b *builder) append(l layer) error {
	if len(l) == 0 {
		return nil
	}
	packed, err := l.pack()
	if err != nil {
		return err
	}
	b.image, err = mutate.AppendLayers(b.image, packed)
	return err
}
