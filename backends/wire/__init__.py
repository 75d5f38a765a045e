"""Pure floor of the backends: framing, streams, usage."""
