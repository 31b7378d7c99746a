package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// add is COPY for local files. Docker's other powers of ADD are refused.
func (b *builder) add(ctx context.Context, i *instruction) error {
	sources, _, err := b.sources(i)
	if err != nil {
		return err
	}
	for _, s := range sources {
		if strings.Contains(s, "://") || strings.HasPrefix(s, "git@") {
			return fmt.Errorf("%s is not a local file: fetch it beforehand", s)
		}
		for _, end := range []string{".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"} {
			if strings.HasSuffix(s, end) {
				return fmt.Errorf("%s would be unpacked: unpack it beforehand, or COPY it as it is", s)
			}
		}
	}
	return b.copy(ctx, i)
}

// sources are the files to be copied, patterns not yet matched, and where to.
func (b *builder) sources(i *instruction) (from []string, to string, err error) {
	list := i.json
	if list == nil {
		if list, err = words(i.rest); err != nil {
			return nil, "", err
		}
	}
	if len(list) < 2 {
		return nil, "", errors.New("want what to copy and where to")
	}
	for n := range list {
		if list[n], err = b.expand(list[n]); err != nil {
			return nil, "", err
		}
	}
	return list[:len(list)-1], list[len(list)-1], nil
}

func (b *builder) copy(ctx context.Context, i *instruction) error {
	o, err := ownerOf(i.flags)
	if err != nil {
		return err
	}
	patterns, to, err := b.sources(i)
	if err != nil {
		return err
	}
	src := source{b.Context, b.ignore}
	if from, ok := i.flags["from"]; ok {
		if from, err = b.expand(from); err != nil {
			return err
		}
		files, err := b.filesOf(ctx, from)
		if err != nil {
			return err
		}
		src, o.exact = source{files, nil}, true
	}
	var found []string
	for _, p := range patterns {
		p = path.Clean("/" + p)[1:] // the context is the root
		if p == "" {
			p = "."
		}
		matches, err := src.glob(p)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if len(matches) == 0 {
			return fmt.Errorf("%s is not there to be copied: %s", p, src)
		}
		found = append(found, matches...)
	}
	intoFolder := strings.HasSuffix(to, "/") || to == "."
	if len(found) > 1 && !intoFolder {
		return fmt.Errorf("%d files are to become one: end the destination with /", len(found))
	}
	target, l := b.inside(to), layer{}
	for _, f := range found {
		if err := src.copyOne(l, f, target, intoFolder, o); err != nil {
			return err
		}
	}
	return b.append(l)
}

// source is where COPY takes files from.
type source struct {
	files  fs.FS
	ignore ignore
}

func (src source) String() string {
	if len(src.ignore) > 0 {
		return "the context has no such file that .dockerignore leaves in it"
	}
	return "no such file"
}

// glob matches a pattern; what is ignored is not there.
func (src source) glob(p string) ([]string, error) {
	found, err := fs.Glob(src.files, p)
	return slices.DeleteFunc(found, func(f string) bool {
		// Of an ignored folder some files may be kept.
		info, err := fs.Stat(src.files, f)
		return src.ignore.has(f) && (err != nil || !info.IsDir())
	}), err
}

// copyOne copies a file, or what is in a folder, as Docker does.
func (src source) copyOne(l layer, from, target string, intoFolder bool, o owner) error {
	info, err := fs.Stat(src.files, from)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if intoFolder {
			target = path.Join(target, path.Base(from))
		}
		return l.add(src.files, from, strings.TrimPrefix(target, "/"), o)
	}
	return fs.WalkDir(src.files, from, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || src.ignore.has(p) {
			return err
		}
		rel := p
		if from != "." {
			rel = strings.TrimPrefix(strings.TrimPrefix(p, from), "/")
		}
		to := strings.TrimPrefix(path.Join(target, rel), "/")
		if to == "" {
			return nil // the image's root
		}
		return l.add(src.files, p, to, o)
	})
}

// ownerOf reads --chown and --chmod. Names would need the base image's accounts.
func ownerOf(flags map[string]string) (owner, error) {
	o := owner{mode: -1}
	for flag, value := range flags {
		switch flag {
		case "chown":
			user, group, ok := strings.Cut(value, ":")
			if !ok {
				group = user
			}
			uid, err1 := strconv.ParseUint(user, 10, 31)
			gid, err2 := strconv.ParseUint(group, 10, 31)
			if err1 != nil || err2 != nil {
				return o, fmt.Errorf("--chown=%s: give numbers", value)
			}
			o.uid, o.gid = int(uid), int(gid)
		case "chmod":
			mode, err := strconv.ParseUint(value, 8, 12)
			if err != nil {
				return o, fmt.Errorf("--chmod=%s: give an octal number", value)
			}
			o.mode = int64(mode)
		case "from": // see copy
		case "link": // what it promises holds anyway
		default:
			known := []string{"--chown", "--chmod", "--from", "--link"}
			return o, fmt.Errorf("--%s is not understood, %s are", flag, strings.Join(slices.Clip(known), ", "))
		}
	}
	return o, nil
}
