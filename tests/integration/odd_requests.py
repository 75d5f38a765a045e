"""Odd requests, and where our verdict on one is meant to differ from aiohttp's.

A difference has a reason, and a reason a rule that says for which bytes it may be given: the corpus and the mutations
of ``test_parser_differential.py`` are judged by the same rules. We may refuse what aiohttp takes. We never take what it
refuses, but for repeated lines that nobody here reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.integration.parser_verdicts import MOST_LINE_BYTES

NEXT = b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n"
"""Goes behind every request: where it is found says where its predecessor ended."""


def get(target: bytes = b"/a", lines: bytes = b"", *, start: bytes = b"GET %b HTTP/1.1") -> bytes:
    """A request without a body; ``lines`` are whole header lines."""
    return start % target + b"\r\nHost: x\r\n" + lines + b"\r\n"


def post(lines: bytes, body: bytes = b"") -> bytes:
    """A request with these header lines and this body, whatever they say of it."""
    return b"POST /a?q=1 HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n" + body


def chunked(body: bytes, coding: bytes = b"chunked") -> bytes:
    """A request whose body is framed by itself."""
    return post(b"Transfer-Encoding: " + coding + b"\r\n", body)


def of_length(said: bytes, body: bytes = b"hello") -> bytes:
    """A request whose length is said like this."""
    return post(b"Content-Length:" + said + b"\r\n", body)


HELLO = b"5\r\nhello\r\n0\r\n\r\n"

ODD: dict[str, bytes] = {
    "nothing": b"",
    "plain get": get(),
    "plain post": of_length(b" 5"),
    # bodies in chunks
    "chunks": chunked(HELLO),
    "chunks in upper case": chunked(b"A\r\nhellohello\r\n0\r\n\r\n"),
    "chunk size with zeros": chunked(b"0005\r\nhello\r\n000\r\n\r\n"),
    "chunk size with thirty zeros": chunked(b"0" * 30 + b"5\r\nhello\r\n0\r\n\r\n"),
    "chunk extension": chunked(b"5;a=b\r\nhello\r\n0\r\n\r\n"),
    "chunk extension quoted": chunked(b'5;a="b;\\"c"\r\nhello\r\n0;x\r\n\r\n'),
    "chunk extension without a name": chunked(b"5;\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with LF": chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with CR": chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with NUL": chunked(b"5;a\0b\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with eight bits": chunked(b"5;a\xffb\r\nhello\r\n0\r\n\r\n"),
    "chunk extension behind a space": chunked(b"5 ;a=b\r\nhello\r\n0\r\n\r\n"),
    "chunk extension after a space": chunked(b"5; a=b\r\nhello\r\n0\r\n\r\n"),
    "chunk extension that hides a request": chunked(b"5;\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: x\r\n\r\n"),
    "chunk size with a space": chunked(b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size behind a space": chunked(b" 5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with 0x": chunked(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with plus": chunked(b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with minus": chunked(b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with underscore": chunked(b"0_5\r\nhello\r\n0\r\n\r\n"),
    "chunk size of 68 bits": chunked(b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "chunk size that wraps to five": chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "chunk size empty": chunked(b"\r\nhello\r\n0\r\n\r\n"),
    "chunk size no number": chunked(b"zz\r\nhello\r\n0\r\n\r\n"),
    "chunk size ended by LF": chunked(b"5\nhello\r\n0\r\n\r\n"),
    "chunk size ended by CR": chunked(b"5\rhello\r\n0\r\n\r\n"),
    "chunk ended by LF": chunked(b"5\r\nhello\n0\r\n\r\n"),
    "chunk longer than said": chunked(b"4\r\nhello\r\n0\r\n\r\n"),
    "chunk shorter than said": chunked(b"6\r\nhello\r\n0\r\n\r\n"),
    "chunks without the last line end": chunked(b"5\r\nhello\r\n0\r\n"),
    "chunks with LF as the last line end": chunked(b"5\r\nhello\r\n0\r\n\n"),
    "chunks cut off": chunked(b"5\r\nhel"),
    "trailer": chunked(b"5\r\nhello\r\n0\r\nT: v\r\n\r\n"),
    "trailer that says a length": chunked(b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "trailer that says a coding": chunked(b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "trailer that says close": chunked(b"5\r\nhello\r\n0\r\nConnection: close\r\n\r\n"),
    "trailer without colon": chunked(b"5\r\nhello\r\n0\r\nT v\r\n\r\n"),
    "trailer ended by LF": chunked(b"5\r\nhello\r\n0\r\nT: v\n\r\n"),
    "trailer folded": chunked(b"5\r\nhello\r\n0\r\nT: v\r\n w\r\n\r\n"),
    "trailer with a key": chunked(b"5\r\nhello\r\n0\r\nAuthorization: evil\r\n\r\n"),
    # folded lines
    "folded with a space": post(b"X: a\r\n b\r\n"),
    "folded with a tab": post(b"X: a\r\n\tb\r\n"),
    "folded length": post(b"Content-Length:\r\n 5\r\n", b"hello"),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked\r\n", HELLO),
    "folded coding list": post(b"Transfer-Encoding: chunked\r\n , identity\r\n", HELLO),
    "folded first line": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    # lengths
    "two lengths that agree": post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    "two lengths that differ": post(b"Content-Length: 5\r\nContent-Length: 4\r\n", b"hello"),
    "list of lengths": of_length(b" 5, 5"),
    "length with plus": of_length(b" +5"),
    "length with minus": of_length(b" -5"),
    "length with 0x": of_length(b" 0x5"),
    "length with underscore": of_length(b" 0_5"),
    "length with a zero": of_length(b" 05"),
    "length without a space": of_length(b"5"),
    "length among spaces": of_length(b"  5  "),
    "length among tabs": of_length(b"\t5\t"),
    "length of two numbers": of_length(b" 0 5"),
    "length with a vertical tab": of_length(b" \x0b5"),
    "length with NUL": of_length(b" 5\0"),
    "length in other digits": of_length(" \u0665".encode()),
    "length empty": of_length(b" "),
    "length over 64 bits": of_length(b" 18446744073709551621"),
    "length of 19 digits": of_length(b" " + b"5".zfill(19)),
    "length of 20 digits": of_length(b" " + b"5".zfill(20)),
    "length of a get": get(lines=b"Content-Length: 5\r\n") + b"hello",
    "length too small": of_length(b" 4"),
    "length too large": of_length(b" 6"),
    "length with an underscore for its hyphen": post(b"Content_Length: 5\r\n", b"hello"),
    # transfer codings
    "coding and length": post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", HELLO),
    "length and coding": post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", HELLO),
    "length zero and coding": post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", HELLO),
    "coding identity": chunked(b"hello", b"identity"),
    "coding identity, chunked": chunked(HELLO, b"identity, chunked"),
    "coding chunked, identity": chunked(HELLO, b"chunked, identity"),
    "coding chunked twice": chunked(HELLO, b"chunked, chunked"),
    "coding gzip": chunked(b"hello", b"gzip"),
    "coding gzip, chunked": chunked(HELLO, b"gzip, chunked"),
    "coding in odd case": chunked(HELLO, b"ChUnKeD"),
    "coding among spaces": chunked(HELLO, b"  chunked  "),
    "coding behind a tab": chunked(HELLO, b"\tchunked"),
    "coding before a tab": chunked(HELLO, b"chunked\t"),
    "coding behind a vertical tab": chunked(HELLO, b"\x0bchunked"),
    "coding xchunked": chunked(HELLO, b"xchunked"),
    "coding chunkedx": chunked(HELLO, b"chunkedx"),
    "coding quoted": chunked(HELLO, b'"chunked"'),
    "coding with a parameter": chunked(HELLO, b"chunked;q=1"),
    "coding with a comma behind": chunked(HELLO, b"chunked,"),
    "coding with a comma before": chunked(HELLO, b",chunked"),
    "coding with the kelvin sign": chunked(HELLO, "chun\u212aed".encode()),
    "coding empty": chunked(HELLO, b""),
    "two codings": post(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", HELLO),
    "two codings, chunked first": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", HELLO),
    "coding said twice": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", HELLO),
    "coding of HTTP/1.0": b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    "coding with an underscore for its hyphen": post(b"Transfer_Encoding: chunked\r\n", HELLO),
    "coding of a get": get(lines=b"Transfer-Encoding: chunked\r\n") + HELLO,
    "coding named by connection": post(b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", HELLO),
    # line ends and control bytes
    "LF everywhere": b"GET / HTTP/1.1\nHost: x\n\n",
    "LF behind the first line": b"GET / HTTP/1.1\nHost: x\r\n\r\n",
    "LF behind a header": b"GET / HTTP/1.1\r\nHost: x\nY: z\r\n\r\n",
    "LF as the blank line": b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    "CR behind the first line": b"GET / HTTP/1.1\rHost: x\r\n\r\n",
    "CR behind a header": b"GET / HTTP/1.1\r\nHost: x\rY: z\r\n\r\n",
    "CR in a value": post(b"X: a\rb\r\n"),
    "CR twice": post(b"X: a\r\r\n"),
    "CR in front of a coding": post(b"X: a\rTransfer-Encoding: chunked\r\n", HELLO),
    "NUL in a value": post(b"X: a\0b\r\n"),
    "NUL in a name": post(b"X\0: a\r\n"),
    "NUL in the target": get(b"/\0"),
    "NUL in front": b"\0" + get(),
    "control byte in a value": post(b"X: a\x01b\r\n"),
    "DEL in a value": post(b"X: a\x7fb\r\n"),
    "eight bits in a value": post(b"X: \xff\xfe\r\n"),
    "eight bits in a name": post(b"X\xff: a\r\n"),
    "CRLF in front": b"\r\n" + get(),
    "three CRLF in front": b"\r\n\r\n\r\n" + get(),
    "LF in front": b"\n" + get(),
    "CR in front": b"\r" + get(),
    "space in front": b" " + get(),
    "only CRLF": b"\r\n\r\n",
    # sizes
    "huge header": post(b"X: " + b"a" * 5000 + b"\r\n"),
    "large header": post(b"X: " + b"a" * 3000 + b"\r\n"),
    "two headers that are huge together": post(b"X: " + b"a" * 3000 + b"\r\nY: " + b"a" * 3000 + b"\r\n"),
    "huge name": post(b"X" * 5000 + b": a\r\n"),
    "huge target": get(b"/" + b"a" * 5000),
    "as many headers as may be": get(lines=b"X: y\r\n" * 99),
    "one header too many": get(lines=b"X: y\r\n" * 100),
    "five hundred headers": get(lines=b"X: y\r\n" * 500),
    # targets
    "absolute form": get(b"http://x/a?q"),
    "absolute form without host": get(b"http:///a"),
    "authority form": get(b"x:80"),
    "connect": get(b"x:80", start=b"CONNECT %b HTTP/1.1"),
    "asterisk form": get(b"*", start=b"OPTIONS %b HTTP/1.1"),
    "asterisk form of a get": get(b"*"),
    "target without a slash": get(b"a"),
    "target with two slashes": get(b"//evil/a"),
    "target with a fragment": get(b"/a#b"),
    "target with a query in its fragment": get(b"/a#b?c"),
    "target that is a query": get(b"?a"),
    "target with a space": get(b"/a b"),
    "target with a tab": get(b"/a\tb"),
    "target with eight bits": get(b"/\xff"),
    "target with DEL": get(b"/\x7f"),
    "target with odd characters": get(b'/a"<>\\^`{|}'),
    "target with dots": get(b"/a/../../b"),
    "target escaped": get(b"/a%00%0d%0a%2f"),
    "target empty": get(b""),
    # versions and first lines
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/1.0 that stays": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 that says so": get(start=b"GET %b HTTP/0.9"),
    "HTTP/1.2": get(start=b"GET %b HTTP/1.2"),
    "HTTP/2.0": get(start=b"GET %b HTTP/2.0"),
    "HTTP/1.10": get(start=b"GET %b HTTP/1.10"),
    "HTTP/1.1x": get(start=b"GET %b HTTP/1.1x"),
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version in lower case": get(start=b"GET %b http/1.1"),
    "version without a number": get(start=b"GET %b HTTP"),
    "another protocol": get(start=b"GET %b RTSP/1.0"),
    "two spaces before the target": get(start=b"GET  %b HTTP/1.1"),
    "two spaces behind the target": get(start=b"GET %b  HTTP/1.1"),
    "space behind the version": get(start=b"GET %b HTTP/1.1 "),
    "tabs in the first line": get(start=b"GET\t%b\tHTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 x\r\n\r\n",
    # methods
    "method in lower case": get(start=b"get %b HTTP/1.1"),
    "method of nobody": get(start=b"BREW %b HTTP/1.1"),
    "method patch": get(start=b"PATCH %b HTTP/1.1"),
    "method query": get(start=b"QUERY %b HTTP/1.1"),
    "method with a hyphen": get(start=b"M-SEARCH %b HTTP/1.1"),
    "method with an odd byte": get(start=b"G@T %b HTTP/1.1"),
    # header lines
    "space before colon": post(b"X : a\r\n"),
    "space before colon of a length": post(b"Content-Length : 5\r\n", b"hello"),
    "tab before colon of a coding": post(b"Transfer-Encoding\t: chunked\r\n", HELLO),
    "space before a name": post(b" X: a\r\n"),
    "header without a name": post(b": a\r\n"),
    "header without a colon": post(b"X\r\n"),
    "header of a space": post(b" \r\n"),
    "header without a value": post(b"X:\r\n"),
    "header with a bracket in its name": post(b"X(y: z\r\n"),
    "header with a space in its name": post(b"X y: z\r\n"),
    "head cut off": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "host empty": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "two accepts": get(lines=b"Accept: a\r\nAccept: b\r\n"),
    "key among blanks": get(lines=b"Authorization: \t Bearer x \t\r\n"),
    "two keys": get(lines=b"Authorization: a\r\nAuthorization: b\r\n"),
    "idempotency key twice": get(lines=b"Idempotency-Key: a\r\nIdempotency-Key: a\r\n"),
    "encoded content": post(b"Content-Encoding: gzip\r\nContent-Length: 5\r\n", b"hello"),
    # expectations
    "expect": post(b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello"),
    "expect in odd case": post(b"Expect: 100-Continue \r\nContent-Length: 5\r\n", b"hello"),
    "expect something else": post(b"Expect: tea\r\nContent-Length: 5\r\n", b"hello"),
    "expect twice": post(b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 5\r\n", b"hello"),
    # connections
    "close": post(b"Connection: close\r\n"),
    "close with a body": post(b"Connection: close\r\nContent-Length: 5\r\n", b"hello"),
    "close in upper case": post(b"Connection: CLOSE\r\n"),
    "close in a list": post(b"Connection: keep-alive, close\r\n"),
    "close before a comma": post(b"Connection: close,foo\r\n"),
    "close in a second line": post(b"Connection: keep-alive\r\nConnection: close\r\n"),
    "closed": post(b"Connection: closed\r\n"),
    "keep-alive in a list": post(b"Connection: foo, keep-alive\r\n"),
    "upgrade to websocket": get(lines=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "upgrade to websocket with a body": post(
        b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n", b"hello"
    ),
    "upgrade to h2c": get(lines=b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    "upgrade to h2c with a body": post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n", b"hello"),
    "upgrade to h2c with chunks": post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n", HELLO),
    "upgrade that connection does not name": get(lines=b"Upgrade: h2c\r\n"),
    "upgrade and close": get(lines=b"Connection: upgrade, close\r\nUpgrade: h2c\r\n"),
    "upgrade of HTTP/1.0": b"GET / HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    # more than one
    "two requests": of_length(b" 5") + get(b"/b"),
    "a request in a body": of_length(b" %d" % len(get(b"/evil")), get(b"/evil")),
    "a request behind zero length": of_length(b" 0", get(b"/b")),
    "two requests in chunks": chunked(HELLO) + chunked(HELLO),
}


# -- where we are stricter -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reason:
    """Why we refuse, or hang up behind, what aiohttp takes; and which bytes it can be true of."""

    why: str
    applies: Callable[[bytes], object]


def _has(pattern: bytes) -> Callable[[bytes], object]:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE).search


def _long_head(raw: bytes) -> bool:
    return any(len(head) > MOST_LINE_BYTES * 0.9 for head in raw.split(b"\r\n\r\n"))


FORM = Reason(
    "A gateway is no forward proxy and has no resource for all: the target is a path.",
    _has(rb"^[A-Z-]+ +(?!/)"),
)
EXPECTATION = Reason(
    "One that cannot be met is 417 (RFC 9110 10.1.1).", _has(rb"^expect:[ \t]*(?!100-continue[ \t]*\r)")
)
REPEATED = Reason(
    "Of a line that decides something there is one, or nobody knows which.",
    _has(rb"^(authorization|expect|idempotency-key|x-request-id):(.|\r?\n(?!\r\n))*^\1:"),
)
CODING = Reason(
    "Nobody here takes another coding off than chunked: the body would be taken for what it is not (RFC 9112 6.1).",
    _has(rb"^transfer-encoding:[ \t]*(?!chunked[ \t]*\r)"),
)
DIGITS = Reason(
    "A length of more digits than a real one needs is an attempt.", _has(rb"^content-length:[ \t]*[0-9]{20}")
)
UPGRADE = Reason(
    "We speak nothing else; behind such an offer nothing is read, and a body in front of it has no certain end.",
    _has(rb"^upgrade:"),
)
WHOLE_HEAD = Reason("The head is bounded as a whole, not only each line of it.", _long_head)
VERSION = Reason(
    "HTTP/1.0 and 1.1 are what is spoken here.", _has(rb"^[A-Z-]+ +[^ \r\n]+([\r\n]| +[A-Z]*/(?!1\.[01]\r))")
)

REASONS = (FORM, EXPECTATION, REPEATED, CODING, DIGITS, UPGRADE, WHOLE_HEAD, VERSION)

STRICTER: dict[str, Reason] = {
    "absolute form": FORM,
    "asterisk form": FORM,
    "connect": FORM,
    "expect something else": EXPECTATION,
    "expect twice": REPEATED,
    "two keys": REPEATED,
    "idempotency key twice": REPEATED,
    "coding identity, chunked": CODING,
    "coding gzip, chunked": CODING,
    "coding with a comma before": CODING,
    "coding empty": CODING,
    "length of 20 digits": DIGITS,
    "upgrade to websocket with a body": UPGRADE,
    "upgrade to h2c": UPGRADE,
    "upgrade to h2c with a body": UPGRADE,
    "upgrade to h2c with chunks": UPGRADE,
    "two headers that are huge together": WHOLE_HEAD,
    "HTTP/0.9": VERSION,
    "HTTP/0.9 that says so": VERSION,
    "HTTP/2.0": VERSION,
}

# -- what we do not read ---------------------------------------------------------------------------------------------

_UNREAD = re.compile(
    rb"^(?=(?:content-(?:location|range|type)|etag|max-forwards|server|user-agent|sec-websocket-key1):)[a-z]",
    re.IGNORECASE | re.MULTILINE,
)
_HOST_IN_TRAILER = re.compile(rb"(\r\n0\r\n(?:[^\r\n:]+:[^\r\n]*\r\n)*)h(?=ost:)", re.IGNORECASE)
UNREAD: dict[str, tuple[bytes, bytes]] = {
    "two kinds of content": (
        post(b"Content-Type: a\r\nContent-Type: b\r\nContent-Length: 5\r\n", b"hello"),
        post(b"Xontent-Type: a\r\nXontent-Type: b\r\nContent-Length: 5\r\n", b"hello"),
    ),
    "two user agents": (
        get(lines=b"User-Agent: a\r\nUser-Agent: b\r\n"),
        get(lines=b"Xser-Agent: a\r\nXser-Agent: b\r\n"),
    ),
    "an old websocket": (get(lines=b"Sec-WebSocket-Key1: a\r\n"), get(lines=b"Xec-WebSocket-Key1: a\r\n")),
    "two hosts in a trailer": (
        chunked(b"5\r\nhello\r\n0\r\nHost: v\r\nHost: w\r\n\r\n"),
        chunked(b"5\r\nhello\r\n0\r\nXost: v\r\nXost: w\r\n\r\n"),
    ),
}
"""Names that aiohttp refuses to see (twice): what is sent, and the same with names that mean nothing to it either.

The gateway reads none of these lines, and no engine ever sees a client's: its requests are written anew.
"""


def with_unread_names_changed(raw: bytes) -> bytes:
    """The same request, where no line that nobody reads has a name that aiohttp knows."""
    return _HOST_IN_TRAILER.sub(rb"\1X", _UNREAD.sub(b"X", raw))


MISTAKEN: dict[str, str] = {
    "trailer with a key": "Its parser over llhttp gives the last line of a trailer to the next request as a header.",
}
"""Where aiohttp's server is wrong and its parser in Python right."""


# -- where aiohttp's parser in Python differs from its other one -------------------------------------------------------

IN_PYTHON_STRICTER: dict[str, str] = {
    "two spaces before the target": "It splits the first line at single spaces; llhttp skips them (RFC 9112 3).",
    "two spaces behind the target": "The same.",
    "LF in front": "llhttp skips any line end in front of a request.",
    "CR in front": "The same.",
    "another protocol": "llhttp knows RTSP's first line, and answers it as HTTP/1.0 that closes.",
    "as many headers as may be": "It counts the first line and the blank one.",
}
"""What its parser in Python refuses and we, with the parser that it serves with, take."""

IN_PYTHON_LAXER: dict[str, str] = {
    "chunk extension without a name": "llhttp reads the grammar of extensions; the other skips to the line's end.",
    "chunk extension with CR": "The same.",
    "chunk extension with NUL": "The same.",
    "chunk extension with eight bits": "The same.",
    "chunk extension after a space": "The same.",
    "chunk size of 68 bits": "Python's numbers have no bound: it waits for a body that never ends.",
    "chunk size that wraps to five": "The same.",
    "length over 64 bits": "The same.",
    "trailer that says a length": "llhttp holds a trailer that reframes its own body for an attempt.",
    "trailer that says a coding": "The same.",
    "trailer that says close": "llhttp obeys it.",
    "coding chunked twice": "It looks at the last coding only.",
    "coding before a tab": "llhttp wants spaces.",
    "target with eight bits": "llhttp wants them escaped.",
    "HTTP/1.2": "It takes any digits.",
    "method in lower case": "It takes any token.",
    "method of nobody": "The same.",
    "length too small": "The same: the rest of the body is part of the next method.",
    "length too large": "The same.",
    "length with an underscore for its hyphen": "The same.",
}
"""And what it takes, and neither we nor the other."""
