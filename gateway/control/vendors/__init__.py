"""Vendors: asking the models that others host, each through its own API. What goes over the wire is in `wire`, how it is
sent in `client`."""
