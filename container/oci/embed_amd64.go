package oci

import _ "embed"

//go:embed bin/init_amd64
var initProgram []byte

//go:embed bin/holder_amd64
var holderProgram []byte
