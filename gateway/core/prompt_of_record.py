"""The prompt of record: what a task's measurements were taken with goes before a customer's messages.

Floor: core (pure). Only where the customer gave no instructions: a message of role ``system`` or ``developer``
stands, and nothing is put before it. What was added is paid for like the rest of the prompt.
"""

from __future__ import annotations

from gateway.core.openai import Ask

INSTRUCTING = frozenset({"system", "developer"})
MESSAGE_TOKENS = 16
"""What a chat template may put around a message; an upper bound, like all that is held for."""


def put_before(ask: Ask, prompt: str) -> bool:
    """Put a prompt before the messages of a chat request, unless they bring instructions; whether it was."""
    messages = ask.known["messages"]
    if any(message["role"] in INSTRUCTING for message in messages):
        return False
    size_bytes = len(prompt.encode())
    ask.known["messages"] = [{"role": "system", "content": prompt}, *messages]
    ask.body_bytes += size_bytes
    ask.prompt_tokens_bound += size_bytes + MESSAGE_TOKENS
    return True
