package apiserver

import (
	"cmp"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/apiserver/codec"
)

// format is the form in which a client wants its answer.
type format struct {
	media string // codec.JSON, codec.YAML, codec.Protobuf or codec.CBOR
	as    string // "", Table, PartialObjectMetadata or PartialObjectMetadataList
	// params of the chosen clause, for discovery
	group, version string
}

// wantsAs tells which transformation the endpoint offers.
type wantsAs func(as, group, version string) bool

func anyTransformation(as, group, version string) bool {
	if group != "meta.k8s.io" || version != "v1" && version != "v1beta1" {
		return false
	}
	return as == "Table" || as == "PartialObjectMetadata" || as == "PartialObjectMetadataList"
}

func noTransformation(string, string, string) bool { return false }

// negotiate picks the clause of the Accept header that the client likes best of
// those that the endpoint can answer.
func negotiate(r *http.Request, offers wantsAs) (format, error) {
	accept := r.Header.Get("Accept")
	if accept == "" {
		return format{media: codec.JSON}, nil
	}
	for _, clause := range clauses(accept) {
		media, params := clause, map[string]string(nil)
		if strings.Contains(clause, ";") {
			var err error
			if media, params, err = mime.ParseMediaType(clause); err != nil {
				continue
			}
		}
		f := format{as: params["as"], group: params["g"], version: params["v"]}
		if f.as != "" && !offers(f.as, f.group, f.version) {
			continue
		}
		switch media {
		case codec.JSON, "*/*", "application/*":
			f.media = codec.JSON
		case codec.YAML, "application/x-yaml", "text/yaml":
			f.media = codec.YAML
		case codec.Protobuf:
			f.media = codec.Protobuf
		case codec.CBOR:
			if f.as != "" && !strings.HasPrefix(f.as, "PartialObjectMetadata") {
				continue // as in Kubernetes, tables and discovery are not
			}
			f.media = codec.CBOR
		default:
			continue
		}
		return f, nil
	}
	return format{media: codec.JSON}, apierrors.NewGenericServerResponse(http.StatusNotAcceptable, "", noResource, "",
		"only the following media types are accepted: "+strings.Join([]string{codec.JSON, codec.YAML, codec.Protobuf, codec.CBOR}, ", "), 0, false)
}

// clauses are the parts of an Accept header, best first: by their weights (RFC
// 9110, section 12.4.2), equal ones in the client's order.
func clauses(accept string) []string {
	out := strings.Split(accept, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	if strings.Contains(accept, "q=") {
		slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(weight(b), weight(a)) })
	}
	return out
}

func weight(clause string) float64 {
	_, params, err := mime.ParseMediaType(clause)
	if err != nil {
		return 0
	}
	q, err := strconv.ParseFloat(params["q"], 64)
	if err != nil {
		return 1
	}
	return q
}
