"""The promises of the platform, each as a test named after its row in the seed map, with the real clients."""
