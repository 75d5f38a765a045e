"""Asking vendors' models over HTTP, with servers in their form that do all that the real ones may do."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import trustme

from gateway.control.evals.engines import AskFailed, ModelAnswer
from gateway.control.evals.values import Candidate
from gateway.control.vendors import client, retries
from gateway.control.vendors.client import Access, VendorFailed, VendorModel, VendorModels
from gateway.control.vendors.port import CallSettings, FailureKind, VendorAnswer
from gateway.settings import SettingsError, load
from tests.integration.vendor_servers import COMPLETION, KEY, PROMPT, WORDS, Turn, VendorServer

VENDORS = ("openai", "anthropic", "google")
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
async def server() -> AsyncIterator[VendorServer]:
    async with VendorServer(without_temperature=["thinker"]).running() as server:
        yield server


@pytest.fixture
async def models(server: VendorServer) -> AsyncIterator[VendorModels]:
    async with VendorModels.open({name: Access(server.url, KEY) for name in VENDORS}) as models:
        yield models


async def opened(models: VendorModels, vendor: str, model: str = "model-1") -> VendorModel:
    return await models.open_model(Candidate(0, model, "frontier", model, vendor=vendor))


async def complete(model: VendorModel, *, within_s: float = PATIENCE_S, **options: Any) -> VendorAnswer:
    deadline_s = asyncio.get_running_loop().time() + within_s
    return await model.complete(MESSAGES, CallSettings(64), deadline_s=deadline_s, **options)


async def failure(model: VendorModel, **options: Any) -> VendorFailed:
    """What went wrong, which is told in our own words."""
    with pytest.raises(VendorFailed) as caught:
        await complete(model, **options)
    told = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert not any(word in told for word in (WORDS, KEY, "localhost", "127.0.0.1", "Hello"))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@pytest.mark.parametrize("vendor", VENDORS)
async def test_each_vendor_answers(server: VendorServer, models: VendorModels, vendor: str) -> None:
    """Text, tokens and why it ended; for evals the same without the latter."""
    model = await opened(models, vendor)
    assert await complete(model) == VendorAnswer("Bonjour", PROMPT, COMPLETION, "stop")
    assert await model.ask(MESSAGES, most_tokens=64) == ModelAnswer("Bonjour", PROMPT, COMPLETION)
    assert "temperature" in orjson.dumps(server.bodies[-1]).decode()


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_model_without_temperature_is_asked_without(
    server: VendorServer, models: VendorModels, vendor: str
) -> None:
    """The first question is asked twice, all others once, and other models go on with theirs."""
    for questions in (2, 3, 4):
        assert (await complete(await opened(models, vendor, "thinker"))).text == "Bonjour"
        assert len(server.bodies) == questions
    assert [b"temperature" in orjson.dumps(body) for body in server.bodies] == [True, False, False, False]
    await complete(await opened(models, vendor))
    assert b"temperature" in orjson.dumps(server.bodies[-1])


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_wrong_key_is_the_operators(
    server: VendorServer, caplog: pytest.LogCaptureFixture, vendor: str
) -> None:
    """It is not tried again, the operator is told once, and nobody is told the key."""
    async with VendorModels.open({vendor: Access(server.url, "sk-wrong")}) as models:
        model = await opened(models, vendor)
        with caplog.at_level(logging.DEBUG):
            for asked in (1, 2):
                assert (await failure(model)).kind is FailureKind.SHUT_OUT
                assert len(server.times) == asked
    warnings = [record.getMessage() for record in caplog.records if record.name == "pareta.vendors"]
    assert len(warnings) == 1
    assert vendor in warnings[0]
    assert "sk-wrong" not in caplog.text
    assert WORDS not in caplog.text


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_refused_request_is_not_repeated(server: VendorServer, models: VendorModels, vendor: str) -> None:
    """A 400 is for good, whatever the vendor says about it."""
    server.turns = [Turn(400)]
    assert (await failure(await opened(models, vendor))).kind is FailureKind.REFUSED
    assert len(server.times) == 1


async def test_what_cannot_be_written_is_never_sent(server: VendorServer, models: VendorModels) -> None:
    """A picture somewhere on the web would be fetched by the vendor."""
    picture = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    with pytest.raises(VendorFailed) as caught:
        await (await opened(models, "openai")).ask([{"role": "user", "content": [picture]}], most_tokens=1)
    assert caught.value.kind is FailureKind.REFUSED
    assert server.times == []


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_a_vendor_in_trouble_is_asked_again(
    server: VendorServer, models: VendorModels, vendor: str, status: int
) -> None:
    """Until it answers."""
    server.turns = [Turn(status), Turn(status)]
    assert (await complete(await opened(models, vendor))).text == "Bonjour"
    assert len(server.times) == 3


@pytest.mark.parametrize(("status", "kind"), [(429, FailureKind.BUSY), (500, FailureKind.DOWN)])
async def test_attempts_have_an_end(server: VendorServer, models: VendorModels, status: int, kind: FailureKind) -> None:
    """However long the deadline."""
    server.turns = [Turn(status) for _ in range(100)]
    assert (await failure(await opened(models, "anthropic"))).kind is kind
    assert len(server.times) == retries.ATTEMPTS


@pytest.mark.parametrize(
    ("vendor", "turn"),
    [
        ("anthropic", Turn(429, {"Retry-After": "1"})),
        ("openai", Turn(503, {"Retry-After": "0.5"})),
        (
            "openai",
            Turn(
                429, {"Retry-After": "Wed, 21 Oct 2015 07:28:01 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
            ),
        ),
        (
            "google",
            Turn(
                429,
                {"Retry-After": "0.01"},
                body=b'{"error": {"code": 429, "details": [{"retryDelay": "0.5s"}]}}',
            ),
        ),
        ("google", Turn(429, body=b'{"error": {"code": 429, "details": [{"retryDelay": "0.5s"}]}}')),
    ],
)  # fmt: skip
async def test_a_vendor_says_when(server: VendorServer, models: VendorModels, vendor: str, turn: Turn) -> None:
    """It is not asked again before."""
    server.turns = [turn]
    await complete(await opened(models, vendor))
    first, second = server.times
    assert second - first >= 0.5


@pytest.mark.parametrize("after", ["30", "1e9", "86400"])
async def test_a_time_past_the_deadline_is_not_waited_for(
    server: VendorServer, models: VendorModels, after: str
) -> None:
    """Who would come too late says so at once, with the time; what is no time is no reason to wait."""
    server.turns = [Turn(429, {"Retry-After": after})]
    model, loop = await opened(models, "anthropic"), asyncio.get_running_loop()
    started_s = loop.time()
    if after == "1e9":
        assert (await complete(model)).text == "Bonjour"
        return
    failed = await failure(model, within_s=15.0)
    assert (failed.kind, failed.after_s) == (FailureKind.BUSY, float(after))
    assert loop.time() - started_s < 10
    assert len(server.times) == 1


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_slow_vendor_is_left_at_the_deadline(server: VendorServer, models: VendorModels, vendor: str) -> None:
    """And it learns of it: the connection is closed, so that it need not go on."""
    server.turns = [Turn(delay_s=60)]
    failed = await failure(await opened(models, vendor), within_s=0.3, may_bill_twice=True)
    assert (failed.kind, failed.may_be_billed) == (FailureKind.TIMED_OUT, True)
    async with asyncio.timeout(5):
        while not server.given_up:
            await asyncio.sleep(0.01)
    assert len(server.times) == 1


async def test_the_deadline_is_of_all_attempts(server: VendorServer, models: VendorModels) -> None:
    """A pause that would end after it is not begun."""
    server.turns = [Turn(500, delay_s=0.15) for _ in range(100)]
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    failed = await failure(await opened(models, "openai"), within_s=0.4)
    assert failed.kind in (FailureKind.DOWN, FailureKind.TIMED_OUT)
    assert loop.time() - started_s < 5
    assert 2 <= len(server.times) < retries.ATTEMPTS


@pytest.mark.parametrize("cut_at", [0, 10])
async def test_an_answer_that_broke_off_may_be_billed(server: VendorServer, models: VendorModels, cut_at: int) -> None:
    """It is asked for again only by who says so."""
    server.turns = [Turn(cut_at=cut_at)]
    model = await opened(models, "anthropic")
    failed = await failure(model)
    assert (failed.kind, failed.may_be_billed, len(server.times)) == (FailureKind.DOWN, True, 1)
    server.turns = [Turn(cut_at=cut_at), Turn(cut_at=cut_at)]
    assert (await complete(model, may_bill_twice=True)).text == "Bonjour"
    assert len(server.times) == 4
    server.turns = [Turn(cut_at=cut_at)]
    assert (await model.ask(MESSAGES, most_tokens=8)).text == "Bonjour"


async def test_a_refusal_that_broke_off_is_a_refusal(server: VendorServer, models: VendorModels) -> None:
    """Its status was there: nothing is billed, and whether to come again is known."""
    server.turns = [Turn(500, cut_at=5), Turn(400, cut_at=5)]
    failed = await failure(await opened(models, "openai"))
    assert (failed.kind, failed.may_be_billed, len(server.times)) == (FailureKind.REFUSED, False, 2)


async def test_nobody_listens_there(server: VendorServer) -> None:
    """Nothing was sent, so it is tried again; when the vendor is back, it answers."""
    async with VendorServer().running() as gone:
        url = gone.url
    async with VendorModels.open({"openai": Access(url, KEY)}) as models:
        model = await opened(models, "openai")
        failed = await failure(model)
        assert (failed.kind, failed.may_be_billed) == (FailureKind.DOWN, False)
        asked = asyncio.create_task(complete(model))
        await asyncio.sleep(0.015)
        async with VendorServer().running(port=int(url.rpartition(":")[2]), reuse_address=True):
            assert (await asked).text == "Bonjour"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>A portal wants you to log in.</html>",
        b'{"choices": [',
        b"[]",
        b'{"content": [{"type": "text", "text": "free of charge"}]}',
        b'{"content": [{"type": "text", "text": "x"}], "usage": {"input_tokens": 1e30, "output_tokens": 1}}',
        b'{"content": [{"type": "text", "text": "\xff"}], "usage": {"input_tokens": 1, "output_tokens": 1}}',
    ],
)
async def test_what_cannot_be_read_or_priced_is_no_answer(
    server: VendorServer, models: VendorModels, body: bytes
) -> None:
    """And is not bought again."""
    server.turns = [Turn(body=body)]
    failed = await failure(await opened(models, "anthropic"), may_bill_twice=True)
    assert (failed.kind, failed.may_be_billed, len(server.times)) == (FailureKind.UNREADABLE, True, 1)


@pytest.mark.parametrize("packed", [False, True])
async def test_an_answer_without_end_is_left(server: VendorServer, models: VendorModels, packed: bool) -> None:
    """Nine megabytes are too many, also if they are a few kilobytes on the wire; so are refusals' of any length."""
    text = "x" * (client.MAX_ANSWER_BYTES + 1)
    usage = {"input_tokens": 1, "output_tokens": 1}
    body = orjson.dumps({"content": [{"type": "text", "text": text}], "usage": usage})
    server.turns = [
        Turn(
            headers={"Content-Encoding": "gzip"} if packed else {},
            body=gzip.compress(body) if packed else body,
        ),
        Turn(400, body=body),
    ]
    model = await opened(models, "anthropic")
    assert (await failure(model)).kind is FailureKind.UNREADABLE
    assert (await failure(model)).kind is FailureKind.REFUSED
    assert (await complete(model)).text == "Bonjour"


async def test_a_redirect_is_not_followed(server: VendorServer, models: VendorModels) -> None:
    """The key goes where the operator said and nowhere else."""
    async with VendorServer().running() as elsewhere:
        server.turns = [
            Turn(status, {"Location": f"{elsewhere.url}/v1/messages"}) for status in (301, 302, 303, 307, 308)
        ]
        model = await opened(models, "anthropic")
        for asked in range(1, 6):
            assert (await failure(model)).kind is FailureKind.SHUT_OUT
            assert len(server.times) == asked
        assert elsewhere.times == []


async def test_a_stranger_with_the_vendors_name_gets_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A certificate that nobody vouches for ends it before the key is sent; one that is vouched for does not."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with VendorServer().running(ssl_context=context) as server:
        async with VendorModels.open({"openai": Access(server.url, KEY)}) as models:
            assert (await failure(await opened(models, "openai"))).kind is FailureKind.SHUT_OUT
            assert server.times == []
            assert "certificate" in caplog.text
        async with VendorModels.open({"openai": Access(server.url, KEY)}, tls=trusting) as models:
            assert (await complete(await opened(models, "openai"))).text == "Bonjour"


async def test_a_turn_is_waited_for(server: VendorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to a vendor are bounded; waiting for one is no failure to connect, however long it takes."""
    monkeypatch.setattr(client, "CONNECTIONS", 2)
    monkeypatch.setattr(client, "CONNECT_S", 0.05)
    server.turns = [Turn(delay_s=0.4) for _ in range(8)]
    async with VendorModels.open({"openai": Access(server.url, KEY)}) as models:
        model = await opened(models, "openai")
        answers = await asyncio.gather(*(complete(model) for _ in range(8)))
    assert [answer.text for answer in answers] == ["Bonjour"] * 8
    assert (server.most_open, len(server.times)) == (2, 8)


async def test_who_is_cancelled_leaves_at_once(server: VendorServer, models: VendorModels) -> None:
    """At work and between attempts; the next question is answered."""
    server.turns = [Turn(delay_s=60), Turn(429, {"Retry-After": "10"})]
    model = await opened(models, "google")
    for asked in (1, 2):
        task = asyncio.create_task(complete(model))
        async with asyncio.timeout(5):
            while len(server.times) < asked or server.open > 2 - asked:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert (await complete(model)).text == "Bonjour"
    assert len(server.times) == 3


async def test_without_a_key_there_is_no_vendor() -> None:
    """It is said so, and told before anything is asked."""
    access = {"openai": Access("https://api.openai.com", ""), "google": Access("https://g.example", KEY)}
    async with VendorModels.open({**access, "other": Access("https://x.example", KEY)}) as models:
        assert models.available() == {"google"}
        for vendor in ("openai", "anthropic", "other"):
            assert not models.is_reachable(vendor)
            with pytest.raises(AskFailed, match="cannot be asked here"):
                await opened(models, vendor)


async def test_the_root_may_end_in_the_version(server: VendorServer) -> None:
    """As in the environment of the vendors' own clients."""
    roots = {"openai": "/v1", "anthropic": "/v1/", "google": "/v1beta"}
    async with VendorModels.open({name: Access(server.url + end, KEY) for name, end in roots.items()}) as models:
        for vendor in roots:
            assert (await complete(await opened(models, vendor))).text == "Bonjour"


def test_keys_are_settings_that_are_never_shown() -> None:
    """In no repr and in no complaint."""
    names = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
    settings = load(dict.fromkeys(names, KEY) | {"OPENAI_BASE_URL": "https://a.example/v1"})
    assert [settings.openai_api_key, settings.anthropic_api_key, settings.gemini_api_key] == [KEY] * 3
    assert settings.openai_base_url == "https://a.example/v1"
    assert KEY not in repr(settings)
    assert KEY not in repr(Access("https://a.example", KEY))
    for name in names:
        for wrong in (f"{KEY}\r\nX: y", f"{KEY} ", f"{KEY}\u00e9"):
            with pytest.raises(SettingsError) as caught:
                load({name: wrong})
            assert KEY not in str(caught.value)
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "GEMINI_BASE_URL"):
        for url in ("ftp://a.example", "api.openai.com", "https://", "http://a.example:x"):
            with pytest.raises(SettingsError, match="_base_url"):
                load({name: url})
