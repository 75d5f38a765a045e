"""From what a client calls the model to an endpoint: ids, names, aliases, and the order of the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from backends.wire.request import Kind
from gateway.core.errors import Refused
from gateway.core.state import Endpoint, EndpointStatus, Key
from gateway.dataplane.resolve import resolve


def endpoint(
    endpoint_id: str,
    *,
    org: str = "org_a",
    name: str = "",
    alias: str | None = None,
    status: EndpointStatus = EndpointStatus.LIVE,
    capabilities: tuple[str, ...] = ("chat",),
) -> Endpoint:
    return Endpoint(
        endpoint_id, org, name or endpoint_id, alias, status, 1000, 100, 60, 0, frozenset(capabilities), (), ()
    )


class State:
    """Endpoints in memory."""

    pepper = b""

    def __init__(self, *endpoints: Endpoint) -> None:
        self._endpoints = endpoints

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        return next((one for one in self._endpoints if one.id == endpoint_id), None)

    def endpoints_of(self, org_id: str) -> Sequence[Endpoint]:
        return [one for one in self._endpoints if one.org_id == org_id]

    def endpoint_named(self, org_id: str, name: str) -> Endpoint | None:
        return next((one for one in self.endpoints_of(org_id) if one.name == name), None)

    def endpoints_serving(self, org_id: str, alias: str) -> Sequence[Endpoint]:
        return [one for one in self.endpoints_of(org_id) if one.alias == alias]

    def key(self, key_id: str) -> Key | None:
        raise AssertionError(key_id)

    async def fetch_key(self, key_id: str) -> Key | None:
        raise AssertionError(key_id)


class Heard:
    """What was said of endpoints that may sleep."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def used(self, endpoint_id: str) -> None:
        self.said.append(("used", endpoint_id))

    def wanted(self, endpoint_id: str) -> None:
        self.said.append(("wanted", endpoint_id))


USES = Heard()
STATE = State(
    endpoint("ep_1", name="first", alias="qwen-1"),
    endpoint("ep_2", name="second", alias="llama-1"),
    endpoint("ep_3", name="third", alias="llama-1", status=EndpointStatus.STOPPED),
    endpoint("ep_4", alias="gemma-1"),
    endpoint("ep_5", alias="gemma-1"),
    endpoint("ep_6", status=EndpointStatus.SEED),
    endpoint("ep_7", status=EndpointStatus.STARTING),
    endpoint("ep_8", status=EndpointStatus.FAILED),
    endpoint("ep_9", org="org_b", name="theirs", alias="qwen-9"),
)


@pytest.mark.parametrize(
    ("model", "found"), [("ep_1", "ep_1"), ("first", "ep_1"), ("qwen-1", "ep_1"), ("llama-1", "ep_2")]
)
def test_an_endpoint_is_found_by_id_name_or_unambiguous_alias(model: str, found: str) -> None:
    """A live endpoint wins over a stopped one of the same alias."""
    assert resolve(STATE, USES, "org_a", model, Kind.CHAT).id == found


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("nope", 404, "model_not_found"),
        ("ep_9", 404, "model_not_found"),
        ("theirs", 404, "model_not_found"),
        ("qwen-9", 404, "model_not_found"),
        ("gemma-1", 404, "model_not_found"),
        ("auto", 404, "model_not_found"),
        ("ep_6", 409, "seed_endpoint"),
        ("ep_7", 503, "endpoint_not_ready"),
        ("ep_8", 503, "endpoint_not_ready"),
        ("ep_3", 503, "endpoint_not_ready"),
    ],
)
def test_what_cannot_be_called_has_its_status(model: str, status: int, code: str) -> None:
    """Somebody else's endpoint is exactly as unknown as none."""
    with pytest.raises(Refused) as caught:
        resolve(STATE, USES, "org_a", model, Kind.CHAT)
    assert (caught.value.error.status, caught.value.error.code) == (status, code)


def test_only_waiting_that_helps_is_advised() -> None:
    """A starting endpoint says when to come back; a stopped one says not to retry."""
    with pytest.raises(Refused) as starting:
        resolve(STATE, USES, "org_a", "ep_7", Kind.CHAT)
    with pytest.raises(Refused) as stopped:
        resolve(STATE, USES, "org_a", "ep_3", Kind.CHAT)
    assert starting.value.error.retry_after_s is not None
    assert (stopped.value.error.retry_after_s, stopped.value.error.should_retry) == (None, False)


def test_a_sleeping_endpoint_is_woken() -> None:
    """By id and by alias, and it says when to come back; nothing is said of others, and by nobody else."""
    heard = Heard()
    state = State(
        endpoint("ep_1"),
        replace(endpoint("ep_2"), sleeps=True),
        replace(endpoint("ep_3", status=EndpointStatus.STOPPED), sleeps=True, asleep=True, starts_in_s=7),
        replace(endpoint("ep_4", status=EndpointStatus.STOPPED), sleeps=True),
    )
    resolve(state, heard, "org_a", "ep_1", Kind.CHAT)
    resolve(state, heard, "org_a", "ep_2", Kind.CHAT)
    with pytest.raises(Refused) as asleep:
        resolve(state, heard, "org_a", "ep_3", Kind.CHAT)
    with pytest.raises(Refused):
        resolve(state, heard, "org_a", "ep_4", Kind.CHAT)
    with pytest.raises(Refused):
        resolve(state, heard, "org_b", "ep_3", Kind.CHAT)
    assert heard.said == [("wanted", "ep_3")]
    assert (asleep.value.error.retry_after_s, asleep.value.error.should_retry) == (7, None)


def test_an_alias_means_the_one_that_will_answer() -> None:
    """Beside one that is stopped for good: the sleeping one, which is woken, or the one on its way."""
    stopped = replace(endpoint("ep_2", alias="a-1"), status=EndpointStatus.STOPPED)
    asleep = replace(endpoint("ep_1", alias="a-1"), status=EndpointStatus.STOPPED, sleeps=True, asleep=True)
    heard = Heard()
    for first in (asleep, replace(asleep, status=EndpointStatus.STARTING, asleep=False)):
        with pytest.raises(Refused) as refused:
            resolve(State(first, stopped), heard, "org_a", "a-1", Kind.CHAT)
        assert refused.value.error.retry_after_s is not None
    assert heard.said == [("wanted", "ep_1")]


def test_work_of_another_kind_is_refused() -> None:
    """An endpoint that only chats does not embed."""
    with pytest.raises(Refused) as caught:
        resolve(STATE, USES, "org_a", "ep_1", Kind.EMBEDDING)
    assert caught.value.error.code == "model_invalid"
