"""Inference backends: the port, the wire formats and the edges that speak them."""
