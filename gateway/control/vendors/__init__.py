"""Vendors: asking the models that others host, each through its own API.

`wire` has what goes over the wire, `client` how it is sent.
"""
