"""The hot path: server, authenticate, admit, route, relay, settle."""
