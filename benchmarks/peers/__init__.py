"""The gateway beside other proxies: the same mock, the same load, the same core, in one run."""
