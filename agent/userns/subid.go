package userns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Subordinate returns the range that the system sets aside for a user's user
// namespaces, which must be the same for users and groups; false if there is none.
// The files are /etc/subuid and /etc/subgid: subuid(5).
func Subordinate(user, subuid, subgid string) (Range, bool, error) {
	uids, err := subids(subuid, user)
	if err != nil || uids == nil {
		return Range{}, false, err
	}
	gids, err := subids(subgid, user)
	if err != nil {
		return Range{}, false, err
	}
	if gids == nil || *gids != *uids {
		return Range{}, false, fmt.Errorf("%s and %s must give user %s the same range", subuid, subgid, user)
	}
	return *uids, true, nil
}

// subids returns the one range of a user; nil if the file has none.
func subids(path, user string) (*Range, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := parse(f, user)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func parse(r io.Reader, user string) (*Range, error) {
	var found *Range
	s := bufio.NewScanner(r)
	for s.Scan() {
		name, rest, ok := strings.Cut(s.Text(), ":")
		if !ok || name != user {
			continue
		}
		first, count, _ := strings.Cut(rest, ":")
		a, errA := strconv.ParseUint(first, 10, 32)
		b, errB := strconv.ParseUint(count, 10, 32)
		if errA != nil || errB != nil {
			return nil, fmt.Errorf("line %q: want USER:FIRST:COUNT", s.Text())
		}
		if found != nil {
			return nil, fmt.Errorf("user %s has more than one range: leave one", user)
		}
		found = &Range{First: uint32(a), Count: uint32(b)}
	}
	return found, s.Err()
}
