package container

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestDevices(t *testing.T) {
	f := newFixture(t)
	f.Server.cfg.DeviceDirs = []string{t.TempDir()}
	lib := t.TempDir()
	if err := os.WriteFile(filepath.Join(lib, "f"), []byte("library\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	text := `{"cdiVersion":"0.6.0","kind":"knarr.test/zero","containerEdits":{"env":["VENDOR=x"]},"devices":[
		{"name":"one","containerEdits":{"deviceNodes":[{"path":"/dev/one","hostPath":"/dev/zero","permissions":"r"}],
		 "mounts":[{"hostPath":"` + lib + `","containerPath":"/lib/vendor","options":["ro"]}],"additionalGids":[4242]}},
		{"name":"moment","containerEdits":{"hooks":[{"hookName":"onTuesdays","path":"/bin/true"}]}},
		{"name":"relative","containerEdits":{"hooks":[{"hookName":"poststop","path":"bin/true"}]}},
		{"name":"instant","containerEdits":{"hooks":[{"hookName":"poststop","path":"/bin/true","timeout":0}]}}]}`
	if err := os.WriteFile(filepath.Join(f.Server.cfg.DeviceDirs[0], "zero.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := f.sandbox(nil)
	use := func(name string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: name}} }
	}
	script := "echo $VENDOR; head -c 3 /dev/one | wc -c; cat /lib/vendor/f; touch /lib/vendor/g 2>/dev/null || echo refused; id -G"
	if got, want := f.output(pod, script, use("knarr.test/zero=one")), "x\n3\nlibrary\nrefused\n0 4242\n"; got != want {
		t.Errorf("with the device: %q, not %q", got, want)
	}
	for _, name := range []string{"knarr.test/zero=moment", "knarr.test/zero=relative", "knarr.test/zero=instant", "knarr.test/zero=none"} {
		conf := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "x"}, Image: &runtimeapi.ImageSpec{Image: f.image}}
		use(name)(conf)
		if _, err := f.CreateContainer(f.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: conf}); status.Code(coded(err)) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
