"""The listener beside aiohttp's own parsers: one verdict on a corpus of odd requests, and on good ones gone wrong.

A verdict is which requests are accepted (method, target, body, the headers that are read, where the next one begins)
and whether the connection is refused, closed or read on. Bytes go into the protocol objects as a loop would hand them
on, cut in every way; what a socket adds is tested in ``test_public_listener.py``.
"""

from __future__ import annotations

import random

import pytest

from tests.integration import odd_requests as odd
from tests.integration.odd_requests import MISTAKEN, NEXT, ODD, STRICTER, UNREAD
from tests.integration.parser_verdicts import AIOHTTP_IN_PYTHON, READS_ON, aiohttp_server, cuts, listener

MUTATIONS = 4000
GOOD = odd.post(b"Authorization: Bearer k\r\nContent-Length: 5\r\n", b"hello")


@pytest.mark.parametrize("name", [name for name in ODD if name not in {*STRICTER, *MISTAKEN}])
async def test_one_verdict_on_odd_requests(name: str) -> None:
    """What aiohttp's server refuses is refused, what it takes is taken; the next request begins at the same byte."""
    raw = ODD[name] + NEXT
    assert await listener([raw]) == aiohttp_server(raw)


@pytest.mark.parametrize("name", STRICTER)
async def test_stricter_with_a_reason(name: str) -> None:
    """Where the gateway refuses more, the reason fits the request; a row that is not needed any more has to go."""
    raw = ODD[name] + NEXT
    ours = await listener([raw])
    assert ours.is_stricter_than(aiohttp_server(raw)), STRICTER[name].why
    assert STRICTER[name].applies(raw)


@pytest.mark.parametrize("name", MISTAKEN)
async def test_not_mistaken_where_aiohttp_is(name: str) -> None:
    """Its other parser says what is right; when both agree, the row has to go."""
    raw = ODD[name] + NEXT
    assert await listener([raw]) == aiohttp_server(raw, AIOHTTP_IN_PYTHON) != aiohttp_server(raw)


@pytest.mark.parametrize("name", UNREAD)
async def test_lines_that_nobody_reads_change_nothing(name: str) -> None:
    """aiohttp refuses some lines when they are repeated; here they are not read, as if they had another name."""
    sent, renamed = (raw + NEXT for raw in UNREAD[name])
    assert await listener([sent]) == await listener([renamed]) == aiohttp_server(renamed)
    assert aiohttp_server(sent) != aiohttp_server(renamed)


@pytest.mark.parametrize("name", [name for name in ODD if name not in STRICTER])
async def test_a_parser_of_other_stock_agrees(name: str) -> None:
    """aiohttp's parser in Python shares no code with llhttp; where it has another opinion, the tables know why."""
    raw = ODD[name] + NEXT
    ours, theirs = await listener([raw]), aiohttp_server(raw, AIOHTTP_IN_PYTHON)
    if name in odd.IN_PYTHON_STRICTER:
        assert theirs.is_stricter_than(ours)
    elif name in odd.IN_PYTHON_LAXER:
        assert ours.is_stricter_than(theirs)
    else:
        assert ours == theirs


def test_tables_name_what_there_is() -> None:
    """No row without a request."""
    assert {*STRICTER, *MISTAKEN, *odd.IN_PYTHON_STRICTER, *odd.IN_PYTHON_LAXER} <= set(ODD)


async def test_the_verdict_does_not_depend_on_how_the_network_cuts() -> None:
    """In one piece, byte by byte, in two at every place; long ones at random places."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for name, request in ODD.items():
        raw = request + NEXT
        whole = await listener([raw])
        for pieces in cuts(raw, chance):
            assert await listener(pieces) == whole, (name, seed, pieces)


@pytest.mark.parametrize("reads", [1, 2, 3, 4])
async def test_behind_good_requests(reads: int) -> None:
    """Good requests in front, in reads of their own or in the same one, change nothing of the verdict on an odd one."""
    good = await listener([GOOD])
    for name, request in ODD.items():
        alone = await listener([request + NEXT])
        pieces = {
            1: [GOOD * 2 + request + NEXT],
            2: [GOOD, GOOD + request + NEXT],
            3: [GOOD, GOOD, request + NEXT],
            4: [GOOD, GOOD, request, NEXT],
        }
        after = await listener(pieces[reads])
        assert after.requests[:2] == good.requests * 2, name
        assert (after.requests[2:], after.end) == (alone.requests, alone.end), name


# -- good requests gone wrong ------------------------------------------------------------------------------------------

BASES = (
    odd.get(b"/v1/models", b"Authorization: Bearer k\r\nUser-Agent: u\r\n"),
    odd.post(b"Authorization: Bearer k\r\nContent-Type: application/json\r\nContent-Length: 12\r\n", b'{"model":"m"'),
    odd.post(b"User-Agent: u\r\nTransfer-Encoding: chunked\r\nIdempotency-Key: i\r\n", odd.HELLO),
    odd.post(b"Expect: 100-continue\r\nContent-Length: 5\r\nConnection: keep-alive\r\n", b"hello"),
    odd.chunked(b"3;a=b\r\nabc\r\nb\r\nhello world\r\n0\r\nT: v\r\n\r\n"),
    b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
)
SPICE = (
    *(bytes([byte]) for byte in b"\r\n\0 \t:;,\x0b\x0c\x7f\xff\"/?#*+-_019aAfFxX"),
    b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\n ", b"0\r\n\r\n", b"chunked", b"identity, ", b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    b"Connection: close\r\n", b"HTTP/1.1", b"GET / HTTP/1.1\r\nHost: z\r\n\r\n", b"http://h", b"00000000000000000000",
)  # fmt: skip


def gone_wrong(good: bytes, chance: random.Random) -> bytes:
    """A good request with one to three faults: bytes put in, taken out or changed, lines doubled, dropped or moved."""
    raw = good
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        place = chance.randrange(len(raw) + 1)
        head, blank, body = raw.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        number, other = (chance.randrange(1, len(lines) + 1) for _ in range(2))
        match chance.randrange(7):
            case 0:
                raw = raw[:place] + chance.choice(SPICE) + raw[place:]
            case 1:
                raw = raw[:place] + chance.choice(SPICE) + raw[place + 1 :]
            case 2:
                raw = raw[:place] + raw[place + chance.choice((1, 1, 2, 5)) :]
            case 3:
                lines.insert(other, lines[min(number, len(lines) - 1)])
                raw = b"\r\n".join(lines) + blank + body
            case 4:
                del lines[number:][:1]
                raw = b"\r\n".join(lines[:number] + lines[number + 1 :]) + blank + body
            case 5:
                raw = raw[:place] + raw[place:].swapcase()
            case _:
                raw = raw[:place]
    return raw


async def agree(pieces: list[bytes], seed: int) -> bool:
    """Whether the connection is read on; fails where the verdicts differ without a reason."""
    raw = b"".join(pieces)
    ours, theirs = await listener(pieces), aiohttp_server(raw)
    if ours != theirs:
        theirs = aiohttp_server(odd.with_unread_names_changed(raw))
    if ours != theirs:
        assert any(reason.applies(piece) for reason in odd.REASONS for piece in pieces), (seed, pieces, ours, theirs)
        assert ours.is_stricter_than(theirs), (seed, pieces, ours, theirs)
    return ours.end == READS_ON


async def test_good_requests_gone_wrong() -> None:
    """Thousands of faults in good requests: the same verdict, or a stricter one for one of the reasons."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    taken = 0
    for _ in range(MUTATIONS):
        good = chance.choice(BASES)
        before = chance.choice(([], [good, good]))
        raw = gone_wrong(good, chance)
        taken += await agree([*before, *chance.choice(([raw + NEXT], [raw, NEXT]))], seed)
    assert MUTATIONS * 0.05 < taken < MUTATIONS * 0.95, "most faults are found, some are none"


async def test_a_head_that_is_almost_the_last_one() -> None:
    """Any byte of a head that came before is changed, doubled or left out, in a read of its own.

    A head that is the last one of its connection is not parsed again (`gateway.dataplane.same_head`), so it must be.
    """
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = b"POST /a?q HTTP/1.1\r\nContent-Length: 12\r\nHost: x\r\nAuthorization: k\r\nAccept: b\r\n\r\n" + b"x" * 12
    for place in range(len(good)):
        rest = good[place + 1 :]
        for spice in (b"", good[place : place + 1] * 2, *chance.sample(SPICE, 6)):
            await agree([good, good, good[:place] + spice + rest, NEXT], seed)
        for spice in chance.sample(SPICE, 6):
            await agree([good, good, good[:place] + spice + good[place:], NEXT], seed)
    for digits in (b"+12", b"-12", b" 12", b"12 ", b"1_2", b"012", b"12,12", b"0xc", b"12\t", b"1 2", b""):
        await agree([good, good, good.replace(b"12", digits, 1), NEXT], seed)
