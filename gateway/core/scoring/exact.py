"""Exact match: the answer is the gold, 1, or it is not, 0.

Floor: core (pure). Definition: the share of answers that equal one of the accepted ones after normalisation (Rajpurkar
et al., "SQuAD", 2016, section 6.1). Normalised is Unicode form (NFKC), letter case, white space, and quotes or a full
stop around the whole. Articles and punctuation inside stay: codes and names are told apart by them.
Settings: ``case_sensitive`` (false).
"""

from __future__ import annotations

from typing import Final

from gateway.core.scoring.answers import NoJson, extract_json
from gateway.core.scoring.fields import whole_value
from gateway.core.scoring.plain import bare, said
from gateway.core.scoring.values import Scorer, ScoreResult, Settings


def _score(expected: object, output: str, settings: Settings) -> ScoreResult:
    accepted = expected if isinstance(expected, list) else [expected]
    right = any(_equals(one, output, case_sensitive=settings.get("case_sensitive") is True) for one in accepted)
    return ScoreResult(1.0, "The answer is the expected one.") if right else ScoreResult(0.0, "The answer is another.")


def _equals(one: object, output: str, *, case_sensitive: bool) -> bool:
    if isinstance(one, dict):
        try:
            return whole_value(extract_json(output)) == whole_value(one)
        except NoJson:
            return False
    text = one if isinstance(one, str) else whole_value(one)
    return bare(said(output), case_sensitive=case_sensitive) == bare(text, case_sensitive=case_sensitive)


def _problem(expected: object, _: Settings) -> str | None:
    if expected is None or expected in ("", []):
        return "The expected value is empty."
    if isinstance(expected, list) and not all(isinstance(one, str) and one for one in expected):
        return "A list of expected values is one of texts, each of which is accepted."
    return None


EXACT_MATCH: Final = Scorer("exact_match", _score, _problem)
