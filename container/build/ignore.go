package build

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// ignore are the rules of a .dockerignore file: which paths are no part of the context.
type ignore []ignoreRule

type ignoreRule struct {
	match *regexp.Regexp
	keep  bool // "!": what matches is part of it after all
}

// parseIgnore reads a .dockerignore file, as Docker's reference of that file has it:
// patterns of path.Match, and ** for any number of folders; the last that matches a
// path, or a folder above it, decides.
func parseIgnore(text string) (ignore, error) {
	var list ignore
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, keep := strings.CutPrefix(line, "!")
		pattern = strings.TrimPrefix(path.Clean("/"+strings.TrimSpace(pattern)), "/")
		if pattern == "" {
			continue
		}
		match, err := globRegexp(pattern)
		if err != nil {
			return nil, fmt.Errorf(".dockerignore: line %d: %q: %w", n+1, line, err)
		}
		list = append(list, ignoreRule{match, keep})
	}
	return list, nil
}

// globRegexp matches what pattern matches, and everything below it.
func globRegexp(pattern string) (*regexp.Regexp, error) {
	var b strings.Builder
	b.WriteString("^")
	for n := 0; n < len(pattern); n++ {
		switch c := pattern[n]; {
		case strings.HasPrefix(pattern[n:], "**/"):
			b.WriteString("(.*/)?")
			n += 2
		case strings.HasPrefix(pattern[n:], "**"):
			b.WriteString(".*")
			n++
		case c == '*':
			b.WriteString("[^/]*")
		case c == '?':
			b.WriteString("[^/]")
		case c == '\\' && n+1 < len(pattern):
			n++
			b.WriteString(regexp.QuoteMeta(pattern[n : n+1]))
		case c == '[':
			end := strings.IndexByte(pattern[n:], ']')
			if end < 0 {
				return nil, path.ErrBadPattern
			}
			b.WriteString(pattern[n : n+end+1])
			n += end
		default:
			b.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	b.WriteString("(/.*)?$")
	return regexp.Compile(b.String())
}

// has tells whether a path of the context, without a leading slash, is ignored.
func (g ignore) has(name string) bool {
	ignored := false
	for _, r := range g {
		if ignored == r.keep && r.match.MatchString(name) {
			ignored = !r.keep
		}
	}
	return ignored
}
