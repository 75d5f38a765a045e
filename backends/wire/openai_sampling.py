"""What an OpenAI request asks of the text's making, for engines that are not asked in OpenAI's words.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.wire.request import Kind
from backends.wire.sampling import GenerationDefaults, Sampling


def read_sampling(
    body: Mapping[str, Any], kind: Kind, *, max_tokens: int, completions: int, defaults: GenerationDefaults
) -> Sampling:
    """Read every field of a checked body: each is honoured, is harmless, or is refused by name.

    Args:
        body: of an `InferenceRequest`.
        max_tokens: the bound on completion tokens of one choice.
        completions: how many choices are wanted.
        defaults: what the model's makers recommend where the request says nothing.

    Raises:
        Unsupported: names the field.
    """
    raise NotImplementedError
