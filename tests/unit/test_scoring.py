"""Scorers: worked examples of the published definitions, and answers that mean harm."""

import json
import time

import pytest

from gateway.core.scoring.answers import MAX_DEPTH, NoJson, extract_json
from gateway.core.scoring.plain import bare, canonical
from gateway.core.scoring.registry import NAMES, OUTSIDE, scorer
from gateway.core.scoring.values import MAX_OUTPUT_CHARS, Counts, macro, micro

LABELS = {"labels": ["cat", "fish", "hen"]}


def score(name, expected, output, settings=None):
    one = scorer(name)
    text = output if isinstance(output, str) else json.dumps(output)
    assert one.problem(expected, settings or {}) is None
    return one.score(expected, text, settings or {}).score


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure!\n```json\n{"a": 1}\n```\nAnything else?', {"a": 1}),
        ('Here it is [1]: {"a": [1, 2]} as asked.', {"a": [1, 2]}),
        ('<think>{"a": 0} or so</think>{"a": 1}', {"a": 1}),
        ("```\n[1, 2]\n```", [1, 2]),
        ('{"open": {"a": "b}"} then', {"a": "b}"}),
        ("7", 7),
    ],
)
def test_json_is_found_where_models_put_it(text, value):
    """In the whole text, in a fence, behind thoughts and between sentences."""
    assert extract_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no value",
        '{"a": NaN}',
        "[Infinity]",
        '{"a": 1e999}',
        '{"a": 1, "a": 2}',
        'So: {"a": {"b": 1}, "a": 2}',
        '{"a": {"b": 1}, "c": NaN}',
        "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
        "[" * 900_000,
        '{"a":' * 150_000,
        "{" * 900_000,
        "1" * 10_000,
        "```\n" * 200_000,
    ],
    ids=lambda text: f"{text[:12]!r}x{len(text)}",
)
def test_what_is_no_usable_json_is_refused_cheaply(text):
    """NaN, names said twice, deep nests and endless openings: an error, in bounded time, never a crash."""
    before = time.process_time()
    with pytest.raises(NoJson):
        extract_json(text)
    assert time.process_time() - before < 20, "quadratic work in the length would take minutes"


def test_values_that_say_the_same_are_equal():
    """Numbers by value, texts without case and space; codes keep their zeros; null and empty say nothing."""
    assert canonical("118.40") == canonical(118.4) == canonical("+118.4") == "118.4"
    assert canonical(-0.0) == canonical("0") == canonical(0) == "0"
    assert canonical("007") != canonical(7)
    assert canonical("1" * 30) != canonical("1" * 29 + "2")
    assert canonical(" Alder \n Works ") == canonical("ALDER WORKS")
    assert canonical(True) == canonical("true") != canonical(1)
    assert canonical(None) is None
    assert canonical("  ") is None
    assert bare(' **"I10".** ') == "i10"
    assert canonical("ﬁle Straße") == canonical("FILE STRASSE")


def test_exact_match_normalises_what_it_says_and_nothing_else():
    """Case, space and what is around the answer do not count; what is inside does."""
    assert score("exact_match", "E11.9", " `e11.9`. ") == 1
    assert score("exact_match", "E11.9", "E119") == 0
    assert score("exact_match", "E11.9", "e11.9", {"case_sensitive": True}) == 0
    assert score("exact_match", ["yes", "y"], "Y") == 1
    assert score("exact_match", 12, "12") == 1
    assert score("exact_match", {"a": 1, "b": None}, '```json\n{"a": "1"}\n```') == 1
    assert score("exact_match", {"a": 1}, "one") == 0


def test_macro_f1_is_the_mean_of_the_labels_f1():
    """By hand: 10 rows; cat P 3/4 R 3/4, fish P 2/3 R 2/4, hen P 1/3 R 1/2: F1 .75, .5714, .4, mean .5738."""
    gold = ["cat"] * 4 + ["fish"] * 4 + ["hen"] * 2
    said = ["cat", "cat", "cat", "fish", "fish", "fish", "hen", "hen", "hen", "cat"]
    one = scorer("macro_f1")
    results = [one.score(right, text, LABELS) for right, text in zip(gold, said, strict=True)]
    assert [result.score for result in results] == [float(a == b) for a, b in zip(gold, said, strict=True)]
    assert macro(results) == pytest.approx((0.75 + 4 / 7 + 0.4) / 3)
    # With one label a row every wrong one is one missed: micro F1 is the accuracy.
    assert micro(results) == pytest.approx(6 / 10)
    assert one.whole is macro
    assert scorer("label_accuracy").whole is None


def test_labels_nobody_has_change_no_class():
    """A model that invents labels has no class more; it has missed the gold."""
    one = scorer("macro_f1")
    listed = [one.score("cat", "dog", LABELS), one.score("fish", "fish", LABELS)]
    free = [one.score("cat", "dog", {}), one.score("fish", "fish", {})]
    assert macro(listed) == macro(free) == 0.5
    assert macro([]) is None


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Cat.", True),
        ("Label: **cat**", True),
        ('{"label": "cat", "why": "whiskers"}', True),
        ('{"answer": "CAT"}', True),
        ("It purrs.\nAnswer: cat", True),
        ("This is not a cat", False),
        ("cat or fish", False),
        ("", False),
        ('{"label": ["cat"]}', False),
    ],
)
def test_a_label_is_read_where_it_is_said(text, right):
    """The whole, a member, the end of the last line; never out of the middle of a sentence."""
    assert score("macro_f1", "cat", text, LABELS) == float(right)


def test_field_f1_by_hand():
    """Four fields in the gold, three said, two right: P 2/3, R 2/4, F1 4/7."""
    gold = {"a": "x", "b": 2, "c": "z", "d": "w", "e": None}
    assert score("field_f1", gold, {"a": "X", "b": "2.0", "c": "no"}) == pytest.approx(4 / 7)
    assert score("field_f1", gold, {"a": "x", "b": 2, "c": "z", "d": "w"}) == 1
    assert score("field_f1", gold, {"a": "x", "b": 2, "c": "z", "d": "w", "e": "made up"}) == pytest.approx(8 / 9)
    assert score("field_f1", gold, "I cannot.") == 0
    assert score("field_f1", {"a": None}, {}) == 1
    assert score("field_f1", {"a": None}, "I cannot.") == 0
    assert score("field_f1", json.dumps(gold), {"a": "x"}) == pytest.approx(2 / 5)


def test_field_f1_sees_through_lists_and_objects():
    """Lists are bags: order does not count, number does."""
    gold = {"items": [{"n": 1}, {"n": 1}, {"n": 2}], "to": {"city": "Cork"}}
    assert score("field_f1", gold, {"to": {"city": "cork"}, "items": [{"n": 2}, {"n": 1}, {"n": 1}]}) == 1
    assert score("field_f1", gold, {"items": [{"n": 1}], "to": {"city": "Cork"}}) == pytest.approx(2 * 2 / (4 + 2))
    assert score("field_f1", gold, {"to": "Cork"}) == 0


def test_joint_f1_wants_kind_and_text_together():
    """CoNLL's rule: half right is wrong. Three in the gold, three said, one right: F1 1/3; by kind 1, 0, 0, 0."""
    gold = {
        "entities": [{"type": "name", "text": "Kim"}, {"type": "phone", "text": "1"}, {"type": "mail", "text": "k"}]
    }
    said = {"entities": [{"text": "KIM", "type": "Name"}, {"type": "fax", "text": "1"}, {"type": "mail", "text": "j"}]}
    assert score("joint_f1", gold, said) == pytest.approx(1 / 3)
    assert score("macro_joint_f1", gold, said) == pytest.approx(1 / 4)
    assert score("macro_joint_f1", gold, gold) == 1
    assert score("macro_joint_f1", {"entities": []}, {"entities": []}) == 1
    assert score("macro_joint_f1", {"entities": []}, {"entities": [{"type": "name", "text": "Kim"}]}) == 0
    assert score("macro_joint_f1", {"entities": []}, "nothing found") == 0


def test_macro_joint_f1_of_plain_objects_is_the_share_of_fields():
    """Without a list each field is a kind of its own, right as a whole or not; the set's figure pools by kind."""
    one = scorer("macro_joint_f1")
    first = one.score({"a": "x", "b": [1, 2]}, '{"b": [2, 1], "a": "y"}', {})
    second = one.score({"a": "x"}, '{"a": "x", "z": 1}', {})
    assert (first.score, second.score) == (0.5, 0.5)
    assert first.counts == {"a": Counts(0, 1, 1), "b": Counts(1, 0, 0)}
    assert macro([first, second]) == pytest.approx((0.5 + 1) / 2)


def test_made_up_kinds_do_not_fill_the_store():
    """An answer with a hundred thousand kinds scores low and leaves little to keep."""
    answer = json.dumps({"a": 1} | {f"k{n}": 1 for n in range(50_000)})
    result = scorer("macro_joint_f1").score({"a": 1}, answer, {})
    assert result.score < 0.001
    assert len(result.counts) <= 51


@pytest.mark.parametrize(
    ("expected", "text", "settings", "value"),
    [
        (100, "about 100", {}, 1),
        (100, "90", {}, 0.9),
        (100, "90", {"tolerance": 0.1}, 1),
        (100, "$1,234.50", {}, 0),
        (1234.5, "$1,234.50", {}, 1),
        (0, "0.25", {}, 0.75),
        (-5, "−5", {}, 1),
        ("12.5", "no idea", {}, 0),
        (1.7e308, "-1.7e308", {}, 0),
        (100, "90", {"tolerance": "much", "zero_at": float("nan")}, 0.9),
        (100, "1e999", {}, 0),
        (5, "9" * 300_000, {}, 0),
    ],
)
def test_numbers_by_closeness(expected, text, settings, value):
    """A straight line from right to far off; the last number said counts."""
    assert score("numeric", expected, text, settings) == pytest.approx(value)


@pytest.mark.parametrize("name", sorted(NAMES - OUTSIDE))
def test_an_endless_answer_scores_nothing(name):
    """Ten megabytes are not read."""
    gold = {"exact_match": "x", "numeric": 1, "label_accuracy": "x", "macro_f1": "x"}.get(name, {"a": 1})
    result = scorer(name).score(gold, "x" * (10 * MAX_OUTPUT_CHARS), {})
    assert (result.score, result.reason) == (0, "The answer is too long to be scored.")


@pytest.mark.parametrize(
    ("name", "gold"),
    [
        ("exact_match", ""),
        ("exact_match", [1]),
        ("macro_f1", {"a": 1}),
        ("macro_f1", "dog"),
        ("field_f1", "text"),
        ("field_f1", [1]),
        ("joint_f1", None),
        ("numeric", "many"),
        ("numeric", True),
        ("numeric", 10**400),
    ],
)
def test_a_gold_that_cannot_be_used_is_named_before_the_run(name, gold):
    """The problem is a sentence."""
    problem = scorer(name).problem(gold, LABELS)
    assert problem
    assert problem.endswith(".")


def test_every_task_of_the_catalogue_has_a_scorer_that_takes_its_examples(catalogue_tasks):
    """Each default scorer exists, and each example's gold is usable and scores 1 against itself."""
    for task in catalogue_tasks:
        assert task["default_scorer"] in NAMES
        if task["default_scorer"] in OUTSIDE:
            continue
        one = scorer(task["default_scorer"])
        for example in task["examples"]:
            gold = example["expected"]
            assert one.problem(gold, task["scorer_settings"]) is None
            text = gold if isinstance(gold, str) else json.dumps(gold)
            assert one.score(gold, text, task["scorer_settings"]).score == 1
            assert one.score(gold, "no idea at all", task["scorer_settings"]).score < 0.5


@pytest.fixture(name="catalogue_tasks")
def _catalogue_tasks():
    from pathlib import Path

    import gateway

    folder = Path(gateway.__file__).parent / "catalog" / "tasks"
    tasks = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert len(tasks) >= 12
    return tasks
