"""How the next token is drawn on TensorRT-LLM, so that it means what the OpenAI API says.

Floor: wire (pure).
TensorRT-LLM is greedy when it is told neither ``top_k`` nor ``top_p``, whatever the temperature; the OpenAI API draws
from all tokens at temperature 1 unless told otherwise. Its versions disagree whether temperature 0 is a valid way to
say greedy; ``top_k`` 1 is in all.
"""

from __future__ import annotations

from dataclasses import replace

from backends.wire.sampling import Sampling


def spelled_out(sampling: Sampling) -> Sampling:
    """The same sampling, with nothing left to TensorRT-LLM's own defaults."""
    if sampling.temperature == 0:
        return replace(sampling, temperature=None, top_k=1, top_p=None, min_p=None)
    return replace(
        sampling,
        temperature=1.0 if sampling.temperature is None else sampling.temperature,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
    )
