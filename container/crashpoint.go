package container

// at is called between the steps in which pods and containers are made, started, ended
// and removed, with the name of the step that has just been done. It does nothing but
// in tests, which learn from it what steps there are and kill the runtime at each.
func (s *Server) at(step string) {
	if s.cfg.reached != nil {
		s.cfg.reached(step)
	}
}
