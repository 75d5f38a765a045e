"""What a Redis URL says, which slot a key is in, and which URLs the settings accept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import settings
from ledger.counter.link import RedisLink
from ledger.counter.topology import slot_of
from ledger.counter.url import read_redis_url


def test_a_url_of_one_server() -> None:
    """Host, port, database and login of the plain URL; the port may be left out."""
    read = read_redis_url("redis://me:s%40cret@[::1]:7000/3")
    assert (read.kind, read.seeds, read.data["username"], read.data["password"]) == (
        "server",
        (("::1", 7000),),
        "me",
        "s@cret",
    )
    assert read.data["db"] == 3
    assert read_redis_url("redis://cache.example").seeds == (("cache.example", 6379),)
    unix = read_redis_url("unix:///run/redis.sock?db=2")
    assert (unix.seeds, unix.data["path"], unix.data["db"]) == ((), "/run/redis.sock", 2)


def test_a_url_of_sentinels() -> None:
    """The hosts are sentinels with a login of their own; the path is the service, and the rest is for the servers."""
    url = "redis+sentinel://me:data%2F@one:7000,[::1],three/cre%20dit?db=2&sentinel_password=their%26s&client_name=x"
    read = read_redis_url(url)
    assert (read.kind, read.service) == ("sentinel", "cre dit")
    assert read.seeds == (("one", 7000), ("::1", 26_379), ("three", 26_379))
    assert (read.data["username"], read.data["password"], read.data["db"]) == ("me", "data/", 2)
    assert read.sentinel["password"] == "their&s"
    assert "username" not in read.sentinel
    assert "db" not in read.sentinel
    assert read.data["client_name"] == read.sentinel["client_name"] == "x"


def test_a_url_of_a_cluster() -> None:
    """The hosts are nodes; TLS counts for all of them."""
    read = read_redis_url("rediss+cluster://:pw@one:7000,two/?ssl_ca_certs=/ca.pem")
    assert (read.kind, read.seeds) == ("cluster", (("one", 7000), ("two", 6379)))
    assert read.data["password"] == "pw"
    assert read.data["ssl_ca_certs"] == "/ca.pem"
    assert read.connection.__name__ == "SSLConnection"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://one", "must start with redis://"),
        ("one:6379", "must start with redis://"),
        ("redis+sentinel://:hunter2@one:26379", "name of the service"),
        ("redis+sentinel://:hunter2@one:26379/a/b", "name of the service"),
        ("redis+sentinel://:hunter2@/credit", "host:port"),
        ("redis+sentinel://:hunter2@one,,two/credit", "host:port"),
        ("redis+cluster://:hunter2@one:port", "host:port"),
        ("redis+cluster://:hunter2@one:70000", "host:port"),
        ("redis+cluster://:hunter2@one/1", "database 0"),
        ("redis+cluster://:hunter2@one?db=1", "database 0"),
        ("redis+cluster://:hunter2@one?sentinel_password=hunter2", "redis\\+sentinel://"),
        ("redis://:hunter2@one?colour=hunter2", "not known: 'colour'"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_with_a_sentence(url: str, hint: str) -> None:
    """The sentence says what to write, and never has the password."""
    with pytest.raises(ValueError, match=hint) as caught:
        RedisLink(url, "key")
    assert "hunter2" not in str(caught.value)


def test_a_url_that_was_read_does_not_print_its_passwords() -> None:
    """Neither in logs nor in tracebacks that show values."""
    assert "hunter2" not in repr(read_redis_url("redis+sentinel://:hunter2@one/credit?sentinel_password=hunter2"))


def test_a_link_to_a_cluster_needs_its_key() -> None:
    """Without one it could not know which node to ask."""
    with pytest.raises(ValueError, match="needs the key"):
        RedisLink("redis+cluster://one")


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        ("123456789", 0x31C3),
        ("foo{bar}{zap}", 5061),
        ("{bar}", 5061),
        ("foo{}{bar}", 8363),
        ("pareta:{0}:meta", 13_907),
    ],
)
def test_slots_are_those_of_the_cluster_specification(key: str, slot: int) -> None:
    """CRC16 of the first hash tag, unless it is empty. The first three numbers are the specification's own."""
    assert slot_of(key) == slot


@given(st.text("a1:-ü", min_size=1), st.text("a1:{}"), st.text("a1:{}"))
def test_keys_of_one_tag_share_a_slot(tag: str, one: str, other: str) -> None:
    """Whatever stands behind the tag."""
    assert slot_of(f"p:{{{tag}}}:{one}") == slot_of(f"p:{{{tag}}}:{other}") == slot_of(tag)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster"])
def test_the_settings_accept_what_the_counter_can_read(scheme: str) -> None:
    """Every scheme of a link is one of the settings."""
    url = f"{scheme}://one/credit" if "sentinel" in scheme else f"{scheme}://one"
    read_redis_url(url)
    assert settings.load({"REDIS_URL": url}).redis_url == url
    with pytest.raises(settings.SettingsError, match=r"cannot be used\. A Redis URL must"):
        settings.load({"REDIS_URL": f"x{url}"})


def test_the_settings_refuse_a_redis_url_before_anything_starts() -> None:
    """With the counter's own sentence, and without the password."""
    with pytest.raises(settings.SettingsError, match="name of the service") as caught:
        settings.load({"REDIS_URL": "redis+sentinel://:hunter2@one:26379"})
    assert "hunter2" not in str(caught.value)
