"""Programs that measure the gateway."""
