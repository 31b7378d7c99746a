package container

import (
	"sync"

	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// events hands container events to all who listen.
type events struct {
	mu   sync.Mutex
	subs map[chan *runtimeapi.ContainerEventResponse]struct{}
}

// eventBuffer is how far a listener may fall behind before it is cut off; it
// then lists and listens anew, which is how the kubelet treats an ended stream.
const eventBuffer = 1024

func (e *events) subscribe() chan *runtimeapi.ContainerEventResponse {
	ch := make(chan *runtimeapi.ContainerEventResponse, eventBuffer)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.subs == nil {
		e.subs = map[chan *runtimeapi.ContainerEventResponse]struct{}{}
	}
	e.subs[ch] = struct{}{}
	return ch
}

func (e *events) unsubscribe(ch chan *runtimeapi.ContainerEventResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.subs[ch]; ok {
		delete(e.subs, ch)
		close(ch)
	}
}

func (e *events) publish(ev func() *runtimeapi.ContainerEventResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.subs) == 0 {
		return
	}
	message := ev()
	for ch := range e.subs {
		select {
		case ch <- message:
		default:
			delete(e.subs, ch)
			close(ch)
		}
	}
}

// emit tells listeners that something happened to the container id (or to the
// sandbox of that ID) of pod p.
func (s *Server) emit(kind runtimeapi.ContainerEventType, id string, p *pod) {
	s.events.publish(func() *runtimeapi.ContainerEventResponse {
		ev := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: s.cfg.Now().UnixNano()}
		if p != nil {
			ev.PodSandboxStatus = p.status()
			for _, c := range s.containersOf(p.ID) {
				ev.ContainersStatuses = append(ev.ContainersStatuses, c.status())
			}
		}
		return ev
	})
}

// GetContainerEvents sends every event from now on, until the client leaves.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out runtimeapi.RuntimeService_GetContainerEventsServer) error {
	ch := s.events.subscribe()
	defer s.events.unsubscribe(ch)
	// Tells the client that from here on nothing escapes it.
	if err := out.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		select {
		case ev, ok := <-ch:
			if !ok {
				return nil
			}
			if err := out.Send(ev); err != nil {
				return err
			}
		case <-out.Context().Done():
			return nil
		case <-s.life.Done():
			return nil
		}
	}
}
