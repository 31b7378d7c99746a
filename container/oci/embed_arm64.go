package oci

import _ "embed"

//go:embed bin/init_arm64
var initProgram []byte

//go:embed bin/holder_arm64
var holderProgram []byte
