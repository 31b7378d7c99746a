package apiserver

import (
	"mime"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/apiserver/codec"
)

// format is the form in which a client wants its answer.
type format struct {
	media string // codec.JSON, codec.YAML or codec.Protobuf
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

// negotiate picks the first clause of the Accept header that the endpoint can
// answer. Clients list them in order of preference, without weights.
func negotiate(r *http.Request, offers wantsAs) (format, error) {
	accept := r.Header.Get("Accept")
	if accept == "" {
		return format{media: codec.JSON}, nil
	}
	for _, clause := range strings.Split(accept, ",") {
		media, params, err := mime.ParseMediaType(strings.TrimSpace(clause))
		if err != nil {
			continue
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
		default:
			continue
		}
		return f, nil
	}
	return format{media: codec.JSON}, apierrors.NewGenericServerResponse(http.StatusNotAcceptable, "", noResource, "",
		"only the following media types are accepted: "+strings.Join([]string{codec.JSON, codec.YAML, codec.Protobuf}, ", "), 0, false)
}
