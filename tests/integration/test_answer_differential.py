"""Answers of engines, ours beside aiohttp's client: what its parsers hold for broken is never taken for whole.

Both read the same bytes, then the end of the connection. Towards servers aiohttp is lenient on purpose; the gateway's
engines are its own, and what they say is charged for, so llhttp's strict rules stay on. Every place where that refuses
more stands in a table.
"""

from __future__ import annotations

import random

import pytest

from tests.integration.parser_verdicts import (
    ANSWERS_OF_AIOHTTP_IN_PYTHON,
    aiohttp_client,
    cuts,
    engine_connection,
)

MUTATIONS = 4000
TE = b"Transfer-Encoding: chunked\r\n"
FIVE = b"Content-Length: 5\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"


def answer(lines: bytes, body: bytes = b"hello", start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """An answer with these header lines and this body, whatever they say of it."""
    return start + b"\r\n" + lines + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    """An answer whose body is framed by itself."""
    return answer(TE, body)


INTERIM = answer(b"", b"", b"HTTP/1.1 100 Continue")

ODD: dict[str, bytes] = {
    "nothing": b"",
    "length": answer(FIVE + b"Content-Type: a/b\r\n"),
    "chunks": chunked(HELLO),
    "until the end": answer(b""),
    "noise": b"hello",
    "head cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
    # lengths and codings
    "two lengths that agree": answer(FIVE * 2),
    "two lengths that differ": answer(FIVE + b"Content-Length: 4\r\n"),
    "list of lengths": answer(b"Content-Length: 5,5\r\n"),
    "length with plus": answer(b"Content-Length: +5\r\n"),
    "length with minus": answer(b"Content-Length: -1\r\n"),
    "length among blanks": answer(b"Content-Length: \t5 \t\r\n"),
    "length empty": answer(b"Content-Length:\r\n"),
    "length over 64 bits": answer(b"Content-Length: 99999999999999999999\r\n"),
    "length of a body cut off": answer(b"Content-Length: 7\r\n"),
    "length too small": answer(b"Content-Length: 4\r\n"),
    "length and coding": answer(FIVE + TE, HELLO),
    "coding and length": answer(TE + FIVE, HELLO),
    "coding identity": answer(b"Transfer-Encoding: identity\r\n"),
    "coding identity and length": answer(b"Transfer-Encoding: identity\r\n" + FIVE),
    "coding identity, chunked": answer(b"Transfer-Encoding: identity, chunked\r\n", HELLO),
    "coding chunked, identity": answer(b"Transfer-Encoding: chunked, identity\r\n"),
    "coding gzip": answer(b"Transfer-Encoding: gzip\r\n"),
    "coding notchunked": answer(b"Transfer-Encoding: notchunked\r\n"),
    "coding in odd case": answer(b"Transfer-Encoding: CHUNKED \r\n", HELLO),
    "two codings": answer(b"Transfer-Encoding: identity\r\n" + TE, HELLO),
    "two codings, chunked first": answer(TE + b"Transfer-Encoding: identity\r\n"),
    "coding of HTTP/1.0": answer(TE, HELLO, b"HTTP/1.0 200 OK"),
    # chunks
    "chunk extension": chunked(b"5;a=b\r\nhello\r\n0\r\n\r\n"),
    "chunk extension without a name": chunked(b"5;\r\nhello\r\n0;\r\n\r\n"),
    "chunk size with a space": chunked(b"5  \r\nhello\r\n0\r\n\r\n"),
    "chunk size no number": chunked(b"zz\r\nhello\r\n0\r\n\r\n"),
    "chunk size of 68 bits": chunked(b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "chunk size ended by LF": chunked(b"5\nhello\r\n0\r\n\r\n"),
    "chunk longer than said": chunked(b"4\r\nhello\r\n0\r\n\r\n"),
    "chunks with LF": chunked(b"5\nhello\n0\n\n"),
    "chunks cut off": chunked(b"5\r\nhel"),
    "chunks without the last": chunked(b"5\r\nhello\r\n"),
    "chunks without the last line end": chunked(b"5\r\nhello\r\n0\r\n"),
    "trailer": chunked(b"5\r\nhello\r\n0\r\nA: b\r\n\r\n"),
    "trailer without colon": chunked(b"5\r\nhello\r\n0\r\nA b\r\n\r\n"),
    "trailer that says a length": chunked(b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n"),
    # first lines
    "no reason": answer(FIVE, start=b"HTTP/1.1 200"),
    "empty reason": answer(FIVE, start=b"HTTP/1.1 200 "),
    "reason of eight bits": answer(FIVE, start=b"HTTP/1.1 200 \xff"),
    "HTTP/1.0": answer(FIVE, start=b"HTTP/1.0 200 OK"),
    "HTTP/1.0 that stays": answer(b"Connection: keep-alive\r\n" + FIVE, start=b"HTTP/1.0 200 OK"),
    "HTTP/1.2": answer(FIVE, start=b"HTTP/1.2 200 OK"),
    "HTTP/2.0": answer(FIVE, start=b"HTTP/2.0 200 OK"),
    "another protocol": answer(FIVE, start=b"ICY 200 OK"),
    "status of four digits": answer(FIVE, start=b"HTTP/1.1 2000 OK"),
    "status of two digits": answer(FIVE, start=b"HTTP/1.1 20 OK"),
    "status of letters": answer(FIVE, start=b"HTTP/1.1 abc OK"),
    "status 999": answer(FIVE, start=b"HTTP/1.1 999 OK"),
    "CRLF in front": b"\r\n" + answer(FIVE),
    # answers without a body, and before the answer
    "204": answer(b"", b"", b"HTTP/1.1 204 No Content"),
    "204 with a body": answer(FIVE, b"hello", b"HTTP/1.1 204 No Content"),
    "304 with a length": answer(FIVE, b"", b"HTTP/1.1 304 Not Modified"),
    "100 in front": INTERIM + answer(FIVE),
    "100 thirty times": INTERIM * 30 + answer(FIVE),
    "100 with a length": answer(FIVE, b"", b"HTTP/1.1 100 Continue") + answer(FIVE),
    "103 in front": answer(b"Content-Type: x/y\r\n", b"", b"HTTP/1.1 103 Early Hints") + answer(FIVE),
    "101": answer(b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"rest", b"HTTP/1.1 101 Switching Protocols"),
    "101 without upgrade": answer(b"", b"", b"HTTP/1.1 101 Switching Protocols") + answer(FIVE),
    "upgrade of an answer": answer(b"Connection: upgrade\r\nUpgrade: h2c\r\n" + FIVE),
    # line ends and header lines
    "LF everywhere": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "folded": answer(b"X: a\r\n b\r\n" + FIVE),
    "folded length": answer(b"Content-Length:\r\n 5\r\n"),
    "space before colon": answer(b"Content-Length : 5\r\n"),
    "header without a colon": answer(b"X\r\n" + FIVE),
    "NUL in a value": answer(b"X: a\0b\r\n" + FIVE),
    "CR in a value": answer(b"X: a\rb\r\n" + FIVE),
    "control byte in a value": answer(b"X: a\x01b\r\n" + FIVE),
    "eight bits in a value": answer(b"X: \xff\r\n" + FIVE),
    "two kinds of content": answer(b"Content-Type: a/b\r\nContent-Type: c/d\r\n" + FIVE),
    # connections
    "close": answer(b"Connection: close\r\n" + FIVE),
    "close in a list": answer(b"Connection: foo, close\r\n" + FIVE),
    "more than there is": answer(FIVE, b"hello!"),
    "another answer behind": answer(FIVE) * 2,
    "more behind close": answer(b"Connection: close\r\n" + FIVE, b"hello!!"),
}

STRICTER: dict[str, str] = {
    "LF everywhere": "aiohttp takes LF for a line end in answers; an engine of ours writes CRLF.",
    "folded": "aiohttp takes folded lines in answers.",
    "folded length": "The same.",
    "space before colon": "aiohttp takes it in answers.",
    "control byte in a value": "The same.",
    "chunk size with a space": "The same.",
    "coding chunked, identity": "Whatever was chunked and does not end as chunks do may be cut off: it is not charged.",
    "coding notchunked": "A coding nobody knows, with a name that has the other in it.",
    "101": "Nobody asked for another protocol.",
    "101 without upgrade": "The same.",
}

IN_PYTHON_STRICTER: dict[str, str] = {
    "two codings": "It looks at the first line only.",
    "two codings, chunked first": "The same.",
    "CRLF in front": "llhttp skips line ends in front.",
}
"""What aiohttp's parser in Python refuses or never sees the end of, where the one that it uses agrees with us."""

IN_PYTHON_LAXER: dict[str, str] = {
    "two lengths that agree": "It takes the first; llhttp refuses two.",
    "two lengths that differ": "The same.",
    "length over 64 bits": "Python's numbers have no bound.",
    "chunk size ended by LF": "It takes LF for a line end in answers.",
    "chunks with LF": "The same.",
    "chunk extension without a name": "It skips to the line's end.",
    "trailer that says a length": "llhttp holds it for an attempt.",
    "HTTP/1.2": "It takes any digits.",
    "HTTP/2.0": "It keeps the connection.",
    "length too small": "It keeps the connection, with a byte too many on it.",
    "more than there is": "The same.",
    "204 with a body": "The same.",
}


@pytest.mark.parametrize("name", [name for name in ODD if name not in STRICTER])
async def test_one_verdict_on_odd_answers(name: str) -> None:
    """What is whole for aiohttp is whole here, with the same body; what is broken for it is broken here."""
    assert engine_connection([ODD[name]]) == aiohttp_client(ODD[name])


@pytest.mark.parametrize("name", STRICTER)
async def test_stricter_with_a_reason(name: str) -> None:
    """Where an answer is refused that aiohttp would take; a row that is not needed any more has to go."""
    assert engine_connection([ODD[name]]).is_stricter_than(aiohttp_client(ODD[name])), STRICTER[name]


@pytest.mark.parametrize("name", [name for name in ODD if name not in STRICTER])
async def test_a_parser_of_other_stock_agrees(name: str) -> None:
    """aiohttp's parser in Python shares no code with llhttp; where it has another opinion, the tables know why."""
    ours, theirs = engine_connection([ODD[name]]), aiohttp_client(ODD[name], ANSWERS_OF_AIOHTTP_IN_PYTHON)
    if name in IN_PYTHON_STRICTER:
        assert ours != theirs
        assert theirs.is_stricter_than(ours) or theirs.body != ours.body
    elif name in IN_PYTHON_LAXER:
        assert ours != theirs
        assert ours.is_stricter_than(theirs)
    else:
        assert ours == theirs


def test_tables_name_what_there_is() -> None:
    """No row without an answer."""
    assert {*STRICTER, *IN_PYTHON_STRICTER, *IN_PYTHON_LAXER} <= set(ODD)


def test_the_verdict_does_not_depend_on_how_the_network_cuts() -> None:
    """In one piece, byte by byte, in two at every place; long ones at random places."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for name, raw in ODD.items():
        whole = engine_connection([raw])
        for pieces in cuts(raw, chance):
            assert engine_connection(pieces) == whole, (name, seed, pieces)


SPICE = (
    *(bytes([byte]) for byte in b"\r\n\0 \t:;,\x0b\x7f\xff+-_0159afF"),
    b"\r\n", b"\r\n\r\n", b"\r\n ", b"0\r\n\r\n", b"chunked", b"identity, ", FIVE, TE, b"Connection: close\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"HTTP/1.1", INTERIM, b"HTTP/1.0", b"204", b"101",
)  # fmt: skip
BASES = tuple(ODD[name] for name in ("length", "chunks", "until the end", "trailer", "chunk extension", "100 in front"))


async def test_good_answers_gone_wrong() -> None:
    """Thousands of faults in good answers: what is taken for whole is whole for aiohttp, and the same."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    agreed = whole = 0
    for _ in range(MUTATIONS):
        raw = chance.choice(BASES)
        for _ in range(chance.choice((1, 1, 2, 3))):
            place = chance.randrange(len(raw) + 1)
            raw = raw[:place] + chance.choice((b"", *SPICE)) + raw[place + chance.choice((0, 0, 1, 1, 3)) :]
        cut = chance.randrange(len(raw) + 1)
        ours, theirs = engine_connection([raw[:cut], raw[cut:]]), aiohttp_client(raw)
        assert ours == theirs or ours.is_stricter_than(theirs), (seed, raw, ours, theirs)
        agreed += ours == theirs
        whole += ours.complete
    assert agreed > MUTATIONS * 0.7
    assert MUTATIONS * 0.05 < whole < MUTATIONS * 0.95
