"""Vendors: asking the models that others host, each through its own API.

`conversation` is what is asked, `port` what every vendor's adapter can do, `openai`, `anthropic` and `google` are the
adapters (all pure), `retries` decides what is tried again and when, `client` sends.
"""
