"""Pure floor of the gateway: ideas without input or output."""
