package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Transfer is what a group has read from and written to a block device.
type Transfer struct {
	Device                string // such as /dev/sda
	Reads, Writes         uint64 // requests
	ReadBytes, WriteBytes uint64
}

// Transfers reads the group's, by device. With the first version of control groups there
// are none unless something has put the group's processes into its blkio hierarchy.
func (g Group) Transfers() []Transfer {
	all := map[string]*Transfer{}
	if d := g.v1("blkio"); d != "" {
		transfers(all, filepath.Join(d, "blkio.throttle.io_serviced_recursive"), [4]string{"Read", "Write"})
		transfers(all, filepath.Join(d, "blkio.throttle.io_service_bytes_recursive"), [4]string{2: "Read", 3: "Write"})
	} else if d := g.v2(); d != "" {
		transfers(all, filepath.Join(d, "io.stat"), [4]string{"rios", "wios", "rbytes", "wbytes"})
	}
	list := make([]Transfer, 0, len(all))
	for _, t := range all {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b Transfer) int { return strings.Compare(a.Device, b.Device) })
	return list
}

// transfers reads lines of a device's number and what it carried, "8:0 rbytes=5 wbytes=7"
// or "8:0 Read 5", into the fields that keys name: reads, writes, and their bytes.
func transfers(all map[string]*Transfer, file string, keys [4]string) {
	data, err := os.ReadFile(file)
	if err != nil {
		return // no such group
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(strings.ReplaceAll(line, "=", " "))
		for i := 1; i+1 < len(f); i += 2 {
			n, err := strconv.ParseUint(f[i+1], 10, 64)
			k := slices.Index(keys[:], f[i])
			if err != nil || k < 0 {
				continue
			}
			t := all[f[0]]
			if t == nil {
				t = &Transfer{Device: device(f[0])}
				all[f[0]] = t
			}
			*[]*uint64{&t.Reads, &t.Writes, &t.ReadBytes, &t.WriteBytes}[k] = n
		}
	}
}

// device names the device of a number such as 8:0, which it also is if it is unknown.
func device(number string) string {
	link, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return number
	}
	return "/dev/" + filepath.Base(link)
}
