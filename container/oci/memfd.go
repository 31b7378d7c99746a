package oci

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// program puts an executable into a sealed memory file.
func program(name string, text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before 6.3 every memory file is executable
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("making memory file %s: %w", name, err)
	}
	fail := func(err error) (*os.File, error) { unix.Close(fd); return nil, err }
	for off := 0; off < len(text); {
		n, err := unix.Write(fd, text[off:])
		if err != nil {
			return fail(fmt.Errorf("filling memory file %s: %w", name, err))
		}
		off += n
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return fail(fmt.Errorf("sealing memory file %s: %w", name, err))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// blobFile puts data into a memory file to be read by a child.
func blobFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making memory file %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("filling memory file %s: %w", name, err)
	}
	return f, nil
}
