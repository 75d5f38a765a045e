"""The matcher of tasks: deterministic, bounded, and as good as the README says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.matcher.__main__ import accuracy, read_queries
from gateway.control.catalog import folder
from gateway.control.catalog.reading import read_tasks
from gateway.core.matching import MEDIUM, Matcher

TASKS = read_tasks(folder.read_files(folder.shipped()))
MATCHER = Matcher(TASKS)


def test_it_understands_people() -> None:
    """Floors for both halves; of the half that was held out nothing was looked at while it was made."""
    for queries in read_queries():
        found = accuracy(MATCHER, queries)
        assert found.queries >= 80
        assert found.first >= 0.9
        assert found.chosen >= 0.8
        assert found.wrong <= 0.03
        assert found.let_go >= 0.9


@given(st.text(max_size=300), st.integers(1, 50))
def test_whatever_is_asked(query: str, top_k: int) -> None:
    """Scores are shares in falling order; the chosen one is the first, and only if it is good enough."""
    found = MATCHER.match(query, top_k)
    scores = [one.score for one in found.candidates]
    assert len(scores) <= top_k
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)
    if found.chosen is None:
        assert not scores or scores[0] < MEDIUM
    else:
        assert found.chosen == found.candidates[0]
    assert MATCHER.match(query, top_k) == found == Matcher(TASKS).match(query, top_k)


def test_two_jobs_in_one_sentence_are_ambiguous() -> None:
    """Neither is clearly meant."""
    found = MATCHER.match("support tickets or comment moderation", 5)
    assert {one.task_id for one in found.candidates[:2]} == {"support-ticket-triage", "comment-moderation"}
    assert found.ambiguous
    assert not MATCHER.match("text to sql over our database", 5).ambiguous


@pytest.mark.parametrize("query", ["", "the and of to", "zzz qqq", "🌲🌲", "x" * 100_000, "\x00"])
def test_nothing_known_is_nothing_found(query: str) -> None:
    """No candidate, no error."""
    assert MATCHER.match(query, 5).candidates == ()


def test_stems_and_width_do_not_matter() -> None:
    """Plural, case and full-width letters are the same words."""
    plain = MATCHER.match("invoice", 3)
    assert plain.chosen is not None
    assert MATCHER.match("INVOICES", 3) == plain == MATCHER.match("ｉｎｖｏｉｃｅ", 3)
