package static

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const web = `apiVersion: v1
kind: Pod
metadata: {name: Web, labels: {a: b}}
spec: {containers: [{name: c, image: nginx}]}
`

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"web.yaml": web, ".hidden": "nonsense", "empty.yaml": " ", "wrong.yaml": "kind: Service\napiVersion: v1\n", "typo.yaml": strings.Replace(web, "image:", "imgae:", 1),
		"json.json": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j","namespace":"kube-system"},"spec":{"containers":[{"name":"c","image":"i"}]}}`,
		"bad.yaml":  "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}\n",
		"z.yaml":    web,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pods, err := Load(dir, "n1", time.Unix(1, 0))
	if len(pods) != 2 {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	p := pods[0]
	if p.Name != "web-n1" || p.Namespace != "default" || p.Spec.NodeName != "n1" || p.Spec.RestartPolicy != corev1.RestartPolicyAlways || len(p.UID) != 32 ||
		p.Annotations["kubernetes.io/config.source"] != "file" || p.Annotations["kubernetes.io/config.hash"] != string(p.UID) ||
		p.Spec.Tolerations[0].Effect != corev1.TaintEffectNoExecute {
		t.Errorf("pod: %+v", p)
	}
	if pods[1].Namespace != "kube-system" {
		t.Errorf("JSON: %+v", pods[1])
	}
	for _, want := range []string{"empty.yaml: the file is empty", "wrong.yaml: v1 Service is no v1 Pod", `typo.yaml: error unmarshaling JSON: while decoding JSON: json: unknown field "imgae"`,
		"bad.yaml: spec.containers: Required value", "z.yaml: pod default/web-n1 is in " + filepath.Join(dir, "web.yaml") + " too"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	// The identity depends on node, file and content, not on when it was read.
	same := func(node, text string) string {
		if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := Load(filepath.Join(dir, "web.yaml"), node, time.Unix(2, 0))
		if err != nil {
			t.Fatal(err)
		}
		return string(again[0].UID)
	}
	if same("n1", web) != string(p.UID) || same("n2", web) == string(p.UID) || same("n1", strings.Replace(web, "a: b", "a: c", 1)) == string(p.UID) {
		t.Error("the UID is not what it depends on")
	}
	m := Mirror(p, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node"}})
	if m.UID != "" || m.OwnerReferences[0].UID != "node" || !Shows(m, p) {
		t.Errorf("mirror: %+v", m)
	}
	if none, err := Load(filepath.Join(dir, "missing"), "n1", time.Unix(1, 0)); err != nil || len(none) != 0 {
		t.Errorf("a folder that is not there: %v, %v", none, err)
	}
}

func TestReferencesAreRefused(t *testing.T) {
	l := loader{node: "n"}
	for what, spec := range map[string]string{
		"spec.serviceAccountName": `serviceAccountName: x, containers: [{name: c, image: i}]`,
		"spec.volumes[0]":         `containers: [{name: c, image: i}], volumes: [{name: v, secret: {secretName: s}}]`,
		"env E of container c":    `containers: [{name: c, image: i, env: [{name: E, valueFrom: {configMapKeyRef: {name: x, key: k}}}]}]`,
		"envFrom of container c":  `containers: [{name: c, image: i, envFrom: [{secretRef: {name: x}}]}]`,
		"spec.imagePullSecrets":   `imagePullSecrets: [{name: s}], containers: [{name: c, image: i}]`,
	} {
		_, err := l.Parse("f", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {"+spec+"}\n"))
		if err == nil || !strings.HasPrefix(err.Error(), what+":") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
