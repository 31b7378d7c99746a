// Package build makes container images without running anything: from a
// Dockerfile, of one stage or several, that only copies files and describes, or from a Go main package.
// The same input gives the same image, bit for bit: files carry no times and
// belong to root, and are packed in the order of their names.
package build
