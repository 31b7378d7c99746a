package watchcache

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"sync"
)

// detector finds out who writes to shared objects: it remembers what each
// cached object was when it came, and compares when it goes and when asked. It
// costs an encoding for each write and is for tests and debugging.
type detector struct {
	report func(key, change string)

	mu   sync.Mutex
	seen map[*Item][]byte
}

func newDetector(report func(key, change string)) *detector {
	return &detector{report: report, seen: map[*Item][]byte{}}
}

// came remembers an item as it is now.
func (d *detector) came(i *Item) {
	b, err := json.Marshal(i.Object)
	if err != nil {
		return // objects that cannot be encoded are reported by whoever reads them
	}
	d.mu.Lock()
	d.seen[i] = b
	d.mu.Unlock()
}

// goes checks an item for the last time.
func (d *detector) goes(i *Item) {
	d.mu.Lock()
	before, ok := d.seen[i]
	delete(d.seen, i)
	d.mu.Unlock()
	if ok {
		d.compare(i, before)
	}
}

// all checks every item that is present.
func (d *detector) all() {
	d.mu.Lock()
	present := make(map[*Item][]byte, len(d.seen))
	for i, b := range d.seen {
		present[i] = b
	}
	d.mu.Unlock()
	for i, b := range present {
		d.compare(i, b)
	}
}

func (d *detector) compare(i *Item, before []byte) {
	after, err := json.Marshal(i.Object)
	if err != nil || string(before) == string(after) {
		return
	}
	var x, y any
	if json.Unmarshal(before, &x) != nil || json.Unmarshal(after, &y) != nil {
		return
	}
	var changes []string
	differences("", x, y, &changes)
	d.report(fmt.Sprintf("%T %s at revision %d", i.Object, i.Key, i.Revision), strings.Join(changes, "; "))
}

// differences lists the paths at which two JSON values differ.
func differences(path string, a, b any, out *[]string) {
	if reflect.DeepEqual(a, b) {
		return
	}
	x, ok1 := a.(map[string]any)
	y, ok2 := b.(map[string]any)
	if ok1 && ok2 {
		keys := map[string]bool{}
		for k := range x {
			keys[k] = true
		}
		for k := range y {
			keys[k] = true
		}
		sorted := make([]string, 0, len(keys))
		for k := range keys {
			sorted = append(sorted, k)
		}
		sort.Strings(sorted)
		for _, k := range sorted {
			differences(path+"."+k, x[k], y[k], out)
		}
		return
	}
	p, ok1 := a.([]any)
	q, ok2 := b.([]any)
	if ok1 && ok2 && len(p) == len(q) {
		for i := range p {
			differences(fmt.Sprintf("%s[%d]", path, i), p[i], q[i], out)
		}
		return
	}
	*out = append(*out, fmt.Sprintf("%s was %v, is %v", path, a, b))
}
