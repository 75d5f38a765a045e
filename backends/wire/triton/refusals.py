"""What an interface cannot honour, said by name.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from backends.wire.failure import Unsupported
from backends.wire.sampling import GenerationDefaults, Sampling

NUMBERS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
"""The fields of a `Sampling` that are one number each; an OpenAI request has them under the same names."""


def check_numbers(sampling: Sampling, honoured: Collection[str]) -> None:
    """Refuse a number that the model has no place for.

    Raises:
        Unsupported: names the field.
    """
    for field in NUMBERS:
        if getattr(sampling, field) is not None and field not in honoured:
            raise Unsupported(field, "is not possible with this model")


def check_logprobs(sampling: Sampling, *, has_chosen: bool) -> None:
    """Refuse log probabilities that don't come, and alternatives.

    Raises:
        Unsupported: names the field.
    """
    if not sampling.logprobs:
        return
    if not has_chosen:
        raise Unsupported("logprobs", "are not possible with this model")
    if sampling.top_logprobs:
        raise Unsupported(
            "top_logprobs",
            "is not possible with this model, which tells only the log probabilities of the tokens it chose "
            "(a completion asks for those with logprobs 0)",
        )


def followed(defaults: GenerationDefaults, honoured: Collection[str]) -> GenerationDefaults:
    """What of a model's recommendations there is a place for: a caller must not be refused what he didn't ask for."""

    def kept(field: str, value: float | None) -> float | None:
        return value if field in honoured else None

    return replace(
        defaults,
        temperature=kept("temperature", defaults.temperature),
        top_p=kept("top_p", defaults.top_p),
        top_k=defaults.top_k if "top_k" in honoured else None,
        min_p=kept("min_p", defaults.min_p),
        repetition_penalty=kept("repetition_penalty", defaults.repetition_penalty),
    )
