// Package ports finds TCP ports for servers that tests start.
package ports

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Below the range from which the kernel takes the ports of outgoing connections, which
// would otherwise be in the way a moment later, and below that of node ports.
const first, last = 20000, 29999

var (
	mu    sync.Mutex
	given = map[int]bool{}
)

// Free returns a port on which nobody listens, another one each time.
func Free() (int, error) {
	mu.Lock()
	defer mu.Unlock()
	for range 1000 {
		p := first + rand.IntN(last-first+1)
		if given[p] {
			continue
		}
		l, err := net.Listen("tcp", ":"+strconv.Itoa(p))
		if err != nil {
			continue
		}
		given[p] = true
		return p, l.Close()
	}
	return 0, errors.New("no free port from 20000 to 29999")
}
