package stream

import (
	"bufio"
	"net"
	"net/http"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/tools/portforward"
	portconst "k8s.io/cri-streaming/pkg/streaming/portforward"
)

// tunnel is the SPDY connection that a client's WebSocket carries. To the code that
// serves SPDY it is the answer to a request, on a connection to be taken over.
type tunnel struct {
	net.Conn
	header http.Header
}

// openTunnel answers the client's handshake and returns the request for SPDY that the
// client would have made without the WebSocket.
func openTunnel(w http.ResponseWriter, r *http.Request) (*tunnel, *http.Request, error) {
	up := websocket.Upgrader{
		ReadBufferSize: 32 << 10, WriteBufferSize: 32 << 10, Subprotocols: []string{"SPDY/3.1+" + portconst.ProtocolV1Name},
		CheckOrigin: func(*http.Request) bool { return true }, // the URL is the credential
	}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil, nil, err
	}
	spdy := r.Clone(r.Context())
	spdy.Method = http.MethodPost
	spdy.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {portconst.ProtocolV1Name}}
	return &tunnel{portforward.NewTunnelingConnection("server", ws), http.Header{}}, spdy, nil
}

// Header implements http.ResponseWriter.
func (t *tunnel) Header() http.Header { return t.header }

// WriteHeader has nothing to send: the client has its answer.
func (t *tunnel) WriteHeader(int) {}

// Hijack implements http.Hijacker.
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.Conn, bufio.NewReadWriter(bufio.NewReader(t.Conn), bufio.NewWriter(t.Conn)), nil
}
