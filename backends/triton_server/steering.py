"""How one answer shall behave: `<<sim {json}>>` in the prompt, as tests write it.

The marker is removed before anything else looks at the prompt. Pure: reads text, refuses a wrong option with a
sentence. Options that the simulator has too mean the same here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from backends.simulator.options import BadOption, SimOptions

_OPENS, _CLOSES = "<<sim ", ">>"


class Fault(StrEnum):
    """What can go wrong. "Mid-stream" is after `after_tokens` tokens of each choice."""

    ERROR_BEFORE = "error_before"  # an in-band error instead of the first response
    ERROR_MID_STREAM = "error_mid_stream"
    DIE_BEFORE = "die_before"  # the model's process kills itself
    DIE_MID_STREAM = "die_mid_stream"
    HANG = "hang"  # nothing ever comes; only a cancellation ends it
    HANG_MID_STREAM = "hang_mid_stream"
    NO_ANSWER = "no_answer"  # the stream ends cleanly without one response
    END_MID_STREAM = "end_mid_stream"  # it ends cleanly in the middle, as if that were all
    NO_TEXT = "no_text"  # responses lack their text


BEFORE = frozenset({Fault.ERROR_BEFORE, Fault.DIE_BEFORE, Fault.HANG, Fault.NO_ANSWER})


@dataclass(frozen=True, slots=True)
class Steering:
    """Options of one answer.

    Attributes:
        ttft_ms, itl_ms: milliseconds to the first token and between tokens.
        tokens: exact natural length.
        text: say exactly this.
        seed: joins the request's seed.
        vocabulary: `plain` or `unicode`.
        overrun: take no notice of `max_tokens`.
        fail, after_tokens: what goes wrong, and when.
        finish: report this finish reason, where the interface has one.
        message: text of an in-band error.
        burst: tokens in one response.
        split_utf8: cut tokens inside of characters.
        final_apart: the end comes as an empty final response instead of with the last token.
        cumulative: LLM API only: whether each response repeats the text so far.
        reported_tokens: say this many output tokens in each response, whatever was sent.
        tag: shown by `inspect`.
    """

    ttft_ms: float | None = None
    itl_ms: float | None = None
    tokens: int | None = None
    text: str | None = None
    seed: int | None = None
    vocabulary: str | None = None
    overrun: bool | None = None
    fail: Fault | None = None
    after_tokens: int = 1
    finish: str | None = None
    message: str = "The engine has failed on demand."
    burst: int = 1
    split_utf8: bool = False
    final_apart: bool | None = None
    cumulative: bool = True
    reported_tokens: int | None = None
    tag: str | None = None

    @property
    def simulator_options(self) -> SimOptions:
        """Those that decide the words."""
        return SimOptions(
            tokens=self.tokens,
            text=self.text,
            seed=self.seed,
            vocabulary=self.vocabulary,
            overrun=self.overrun,
        )


_TYPES: dict[str, Any] = {
    "ttft_ms": (int, float),
    "itl_ms": (int, float),
    "tokens": int,
    "text": str,
    "seed": int,
    "vocabulary": str,
    "overrun": bool,
    "fail": str,
    "after_tokens": int,
    "finish": str,
    "message": str,
    "burst": int,
    "split_utf8": bool,
    "final_apart": bool,
    "cumulative": bool,
    "reported_tokens": int,
    "tag": str,
}
assert set(_TYPES) == {field.name for field in fields(Steering)}


def take_marker(prompt: str) -> tuple[str, Steering]:
    """The prompt without its markers, and what they say together; later ones win.

    Raises:
        BadOption: with a sentence.
    """
    said: dict[str, Any] = {}
    while (at := prompt.find(_OPENS)) >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(prompt, at + len(_OPENS))
        except ValueError:
            raise BadOption("What follows `<<sim ` must be a JSON object and `>>`.") from None
        if not isinstance(value, dict) or not prompt.startswith(_CLOSES, end):
            raise BadOption("What follows `<<sim ` must be a JSON object and `>>`.")
        said |= value
        prompt = prompt[:at] + prompt[end + len(_CLOSES) :]
    return prompt, _read({name: item for name, item in said.items() if item is not None})


def _read(said: dict[str, Any]) -> Steering:
    for name, item in said.items():
        if name not in _TYPES:
            raise BadOption(f"`sim.{name}` is not known; there are {', '.join(_TYPES)}.")
        wanted = _TYPES[name]
        if not isinstance(item, wanted) or (isinstance(item, bool) and wanted is not bool):
            raise BadOption(f"`sim.{name}` has the wrong type.")
        if wanted in (int, (int, float)) and item < 0 and name != "seed":
            raise BadOption(f"`sim.{name}` must not be negative.")
    if "fail" in said:
        try:
            said["fail"] = Fault(said["fail"])
        except ValueError:
            raise BadOption(f"There is no fault {said['fail']!r}; there are {', '.join(Fault)}.") from None
    if said.get("burst") == 0:
        raise BadOption("`sim.burst` must be at least 1.")
    return Steering(**said)
