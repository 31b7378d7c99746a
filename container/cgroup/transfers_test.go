package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestTransfers(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"v2/pod/io.stat": "999:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n999:0 rbytes=1 wbytes=2 rios=3 wios=4\n999:1\n",
		"v1/pod/blkio.throttle.io_serviced_recursive":      "999:0 Read 3\n999:0 Write 4\n999:0 Sync 9\n999:0 Total 7\nTotal 7\n",
		"v1/pod/blkio.throttle.io_service_bytes_recursive": "999:0 Read 1\n999:0 Write 2\n999:0 Async x\nTotal 3\n",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unified, first := Layout{V2: filepath.Join(dir, "v2")}, Layout{V1: map[string]string{"blkio": filepath.Join(dir, "v1")}}
	one := Transfer{Device: "999:0", Reads: 3, Writes: 4, ReadBytes: 1, WriteBytes: 2}
	for _, c := range []struct {
		group Group
		want  []Transfer
	}{
		{unified.Group("pod"), []Transfer{one, {Device: "999:16", Reads: 1, Writes: 2, ReadBytes: 4096, WriteBytes: 8192}}},
		{first.Group("pod"), []Transfer{one}},
		{unified.Group("none"), nil}, {first.Group("none"), nil}, {Layout{}.Group("pod"), nil},
	} {
		if got := c.group.Transfers(); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %+v, want %+v", c.group, got, c.want)
		}
	}
}
