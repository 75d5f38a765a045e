"""What the URL of a Redis says: one server, or whom to ask where the data is, and how to log in.

Floor: ``ledger`` edge. It reads text and connects to nothing. No error and no ``repr`` of this module has a password.

=========================================================================  ==========================================
``redis://[user:password@]host[:port][/db]``, ``unix://[…@]/path[?db=0]``  one server
``redis+sentinel://[user:password@]host[:port][,host[:port]…]/service``    the master that Sentinel knows by this name;
                                                                           the hosts are sentinels (port 26379)
``redis+cluster://[user:password@]host[:port][,host[:port]…]``             a Redis Cluster; the hosts are some nodes
=========================================================================  ==========================================

``rediss`` in place of ``redis`` means TLS, to the sentinels too. User and password are those of the data servers;
sentinels have ``sentinel_username`` and ``sentinel_password`` in the query. The other options of the query are those
of redis-py (``ssl_ca_certs``, ``ssl_certfile``, ``client_name``, ``db``…) and count for every server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

Address = tuple[str, int]
"""A host (without brackets) and a port."""

Kind = Literal["server", "sentinel", "cluster"]

_KINDS: Mapping[str, tuple[Kind, str]] = {
    "redis": ("server", "redis"),
    "rediss": ("server", "rediss"),
    "unix": ("server", "unix"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
_PORTS: Mapping[Kind, int] = {"server": 6379, "sentinel": 26_379, "cluster": 6379}
_LIST = re.compile(r"([^/?#]*)(.*)", re.DOTALL)
# Deadlines are ours; retries would repeat a call whose outcome is unknown.
_OURS = ("socket_timeout", "socket_connect_timeout", "retry_on_timeout", "max_connections", "timeout", "protocol")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL, read. ``seeds``: the sentinels or nodes to ask; of one server its address, none of a unix socket."""

    kind: Kind
    seeds: tuple[Address, ...]
    service: str
    connection: type[AbstractConnection]
    data: Mapping[str, Any] = field(repr=False)
    """Arguments of a connection to a server that has data, all but its address."""
    sentinel: Mapping[str, Any] = field(repr=False)
    """The same for a sentinel."""


def read_redis_url(url: str) -> RedisUrl:
    """Read a URL.

    Raises:
        ValueError: it makes no sense; the text says why and is fit for an operator.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in _KINDS:
        raise ValueError(f"A Redis URL must start with {', '.join(name + '://' for name in _KINDS)}.")
    kind, plain = _KINDS[scheme]
    return _one_server(url) if kind == "server" else _many_servers(url, kind, plain)


def _one_server(url: str) -> RedisUrl:
    connection, data = _arguments(url)
    seeds = ((str(data.pop("host", "localhost")), int(data.pop("port", 6379))),) if "path" not in data else ()
    return RedisUrl("server", seeds, "", connection, data, {})


def _many_servers(url: str, kind: Kind, plain: str) -> RedisUrl:
    # Only behind the hosts is it an ordinary URL: Python's newer readers refuse a list that holds an IPv6 address.
    netloc, rest = _LIST.fullmatch(url.partition("://")[2]).groups()  # type: ignore[union-attr]  # it matches anything
    parts = urlsplit(f"//host{rest}")
    login, at, hosts = netloc.rpartition("@")
    seeds = tuple(_address(host, _PORTS[kind]) for host in hosts.split(","))
    options = parse_qsl(parts.query)
    own = {name: value for name, value in options if name in ("sentinel_username", "sentinel_password")}
    query = urlencode([(name, value) for name, value in options if name not in own])
    connection, data = _arguments(f"{plain}://{login}{at}host/?{query}")
    data.pop("host", None)
    path = unquote(parts.path).strip("/")
    if kind == "cluster":
        if own:
            raise ValueError("sentinel_username and sentinel_password belong in a redis+sentinel:// URL.")
        if path not in ("", "0") or int(data.get("db", 0)) != 0:
            raise ValueError("A Redis Cluster has database 0 only: the URL must not name another one.")
        return RedisUrl(kind, seeds, "", connection, data, {})
    if not path or "/" in path:
        raise ValueError("A redis+sentinel:// URL ends with the name of the service: redis+sentinel://host:26379/name.")
    sentinel = {name: value for name, value in data.items() if name not in ("username", "password", "db")}
    sentinel |= {name.removeprefix("sentinel_"): value for name, value in own.items()}
    return RedisUrl(kind, seeds, path, connection, data, sentinel)


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise ValueError(f"A Redis URL needs host:port, or several with commas in between, and has {text!r}.")
    return unquote(host), port or default_port


def _arguments(url: str) -> tuple[type[AbstractConnection], dict[str, Any]]:
    data: dict[str, Any] = dict(parse_url(url))
    connection: type[AbstractConnection] = data.pop("connection_class", Connection)
    for name in _OURS:
        data.pop(name, None)
    data |= {
        "protocol": 2,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    try:
        connection(**data)
    except TypeError as error:  # its text names the option and no value
        raise ValueError(f"The Redis URL has an option that is not known: {str(error).rpartition(' ')[2]}.") from None
    return connection, data
