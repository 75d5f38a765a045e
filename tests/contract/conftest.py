"""Fixtures of the contract tests."""

from tests.contract.flavours import chat_model, flavour

__all__ = ["chat_model", "flavour"]
