"""Grading with real sandboxes and libraries."""

from __future__ import annotations

import socket

import pytest

from gateway.control.evals.engines import AskFailed, ModelAnswer
from gateway.control.evals.grading import Grader

SCHEMA = "CREATE TABLE orders (id INTEGER, customer TEXT, total REAL); INSERT INTO orders VALUES (1,'A',60),(2,'B',10),(3,'A',50);"  # noqa: E501
GOOD = "SELECT customer FROM orders GROUP BY customer HAVING sum(total) > 100"
ROW = {"schema": SCHEMA, "question": "Who spent more than 100 in all?"}


@pytest.mark.parametrize(
    ("given", "score"),
    [
        (GOOD, 1.0),
        ("```sql\nselect distinct customer from orders where customer = 'A'\n```", 1.0),
        ("SELECT customer FROM orders", 0.0),
        ("SELECT nothing", 0.0),
        ("", 0.0),
        ("DROP TABLE orders", 0.0),
        ("ATTACH DATABASE '/tmp/x' AS x", 0.0),
        ("PRAGMA writable_schema = 1", 0.0),
        ("SELECT load_extension('x')", 0.0),
        ("VACUUM INTO '/tmp/x'", 0.0),
        ("SELECT 1; SELECT 2", 0.0),
        ("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n", 0.0),
        ("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n", 0.0),
        ("SELECT hex(zeroblob(1000000000))", 0.0),
        ("SELECT printf('%.*c', 500000000, 'x')", 0.0),
        ("SELECT replace(printf('%.*c', 1000000, 'x'), 'x', printf('%.*c', 100000, 'y'))", 0.0),
        ("\x00", 0.0),
    ],
)
async def test_sql_is_worth_the_rows_that_it_gives(given: str, score: float) -> None:
    """Right rows count, whatever the words; hostile queries are worth nothing and do no harm."""
    assert await Grader().grade("execution_accuracy", GOOD, given, {}, ROW) == score


async def test_order_counts_where_the_good_query_asks_for_one() -> None:
    """And only there; whole numbers and their floats are the same."""
    grader = Grader()
    ordered = "SELECT total FROM orders ORDER BY total"
    assert await grader.grade("execution_accuracy", ordered, "SELECT total FROM orders ORDER BY total", {}, ROW) == 1
    assert await grader.grade("execution_accuracy", ordered, "SELECT total FROM orders", {}, ROW) == 0
    assert await grader.grade("execution_accuracy", "SELECT 3", "SELECT 3.0", {}, ROW) == 1
    assert await grader.grade("execution_accuracy", "SELECT 1", "SELECT 1", {}, {"schema": "nonsense"}) == 0


EMPTY = (
    "CREATE TABLE orders (id INTEGER, customer TEXT, total REAL); CREATE TABLE payments (order_id INTEGER, paid REAL);"
)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("SELECT count(*) FROM orders", "SELECT 0"),
        ("SELECT customer FROM orders GROUP BY customer HAVING sum(total) > 1000", "SELECT customer FROM orders"),
        ("SELECT id FROM orders WHERE total > 75", "SELECT id FROM orders WHERE total >= 75"),
        ("SELECT id FROM orders WHERE customer = 'Kim Larch'", "SELECT id FROM orders WHERE customer = 'Kim'"),
        ("SELECT paid FROM orders JOIN payments ON order_id = id", "SELECT paid FROM orders, payments"),
        ("SELECT max(total) FROM orders", "SELECT min(total) FROM orders"),
    ],
)
async def test_a_schema_without_rows_still_tells_queries_apart(good: str, bad: str) -> None:
    """Empty tables are filled, always the same: over no rows nearly all queries agree."""
    grader, row = Grader(), {"schema": EMPTY}
    assert await grader.grade("execution_accuracy", good, good.lower().replace("kim larch", "Kim Larch"), {}, row) == 1
    assert await grader.grade("execution_accuracy", good, bad, {}, row) == 0


async def test_filling_minds_constraints_and_odd_names() -> None:
    """Rows that a constraint refuses are left out; names need quotes; computed columns fill themselves."""
    schema = (
        'CREATE TABLE "a ""b" (id INTEGER PRIMARY KEY, x INT CHECK (x > 5), "select" TEXT NOT NULL UNIQUE, '
        "twice INT AS (x * 2)); CREATE TABLE none (a); CREATE VIEW v AS SELECT 1;"
    )
    good = 'SELECT count(*) > 0, min(x) > 5, min(twice - 2 * x) FROM "a ""b"'
    assert await Grader().grade("execution_accuracy", good, "SELECT 1, 1, 0", {}, {"schema": schema}) == 1


async def test_whole_numbers_are_compared_digit_by_digit() -> None:
    """Ids are long; sums of fractions differ in their last places."""
    grader = Grader()
    for good, given, score in [
        ("SELECT 1234567890123", "SELECT 1234567890124", 0),
        ("SELECT 1234567890123", "SELECT 1234567890123.0", 1),
        ("SELECT 9007199254740993", "SELECT 9007199254740992", 0),
        ("SELECT 0.1 + 0.2", "SELECT 0.3", 1),
        ("SELECT 2.9999999999999996", "SELECT 3", 1),
        ("SELECT 9e999", "SELECT -9e999", 0),
        ("SELECT '1'", "SELECT 1", 0),
    ]:
        assert await grader.grade("execution_accuracy", good, given, {}, {"schema": ""}) == score


async def test_an_order_inside_or_in_a_text_asks_for_none() -> None:
    """Only the outermost query's order counts."""
    grader = Grader()
    for good, given, score in [
        ("SELECT id FROM (SELECT id FROM orders ORDER BY total LIMIT 9)", "SELECT id FROM orders ORDER BY id DESC", 1),
        ("SELECT id, 'order by' FROM orders", "SELECT id, 'order by' FROM orders ORDER BY id DESC", 1),
        ("SELECT id FROM orders ORDER\nBY id", "SELECT id FROM orders ORDER BY id DESC", 0),
    ]:
        assert await grader.grade("execution_accuracy", good, given, {}, ROW) == score


async def test_thoughts_are_not_graded() -> None:
    """An engine that does not part them from the answer costs a model nothing."""
    said = '<think>Perhaps {"a": 1}? SELECT 2?</think>'
    assert await Grader().grade("field_f1", {"a": 2}, said + '{"a": 2}', {}, "") == 1
    assert await Grader().grade("execution_accuracy", "SELECT 1", said + "SELECT 1", {}, {}) == 1


async def test_a_schema_reaches_nothing_and_recurses_without_end_nowhere() -> None:
    """A reference to an address is not fetched; what cannot be applied is worth nothing and does not raise."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/schema"
        assert await Grader().grade("json_schema", None, "[]", {"schema": {"$ref": address}}, "") == 0
        with pytest.raises(BlockingIOError):
            listener.accept()
    endless = {"schema": {"anyOf": [{"$ref": "#"}]}}
    assert await Grader().grade("json_schema", None, "[]", endless, "") == 0


async def test_bleu_and_schema() -> None:
    """BLEU of the same text is 1; a schema is kept or not."""
    grader = Grader()
    text = "the bridge will close for repairs from May to September"
    assert await grader.grade("bleu", text, text, {}, "") == pytest.approx(1.0)
    assert await grader.grade("bleu", text, "nothing in common here at all", {}, "") < 0.1
    settings = {"schema": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}}
    assert await grader.grade("json_schema", None, '{"a": 1}', settings, "") == 1
    assert await grader.grade("json_schema", None, '{"a": "1"}', settings, "") == 0
    assert await grader.grade("json_schema", None, "no", settings, "") == 0


class _Judge:
    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)

    async def ask(self, messages: object, *, most_tokens: int) -> ModelAnswer:
        del messages, most_tokens
        return ModelAnswer(self.replies.pop(0), 1, 1)

    async def close(self) -> None:
        """Nothing."""


async def test_a_judge_grades_or_the_row_failed() -> None:
    """Without a judge the scorer is unknown; without a grade there is no score."""
    grader = Grader(_Judge('{"grade": 8}', "well"))
    assert await grader.grade("judge", "good", "answer", {}, "question") == 0.8
    with pytest.raises(AskFailed):
        await grader.grade("judge", "good", "answer", {}, {"question": 1})
    assert not Grader().knows("judge")
    assert grader.knows("judge")
    with pytest.raises(ValueError, match="nonsense"):
        await grader.grade("nonsense", "", "", {}, "")
