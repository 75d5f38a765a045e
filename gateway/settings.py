"""Typed settings: the sole reader of the environment.

Floor: composition. Every setting has a unit in its name, a default, bounds and a sentence. Sources, later
ones win: defaults, the TOML file named by ``PARETA_CONFIG``, the environment. Environment names are
``PARETA_<FIELD>`` in capitals; the few that every operator knows (``PORT``, ``DATABASE_URL``…) stand bare.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.core.blob_url import BlobUrlInvalid, Bucket, read_blob_url


class SettingsError(ValueError):
    """A setting is wrong; the text is a sentence for the operator."""


BARE_NAMES = frozenset(
    {
        *("host", "port", "admin_port", "data_dir", "model_folders", "workers", "database_url", "redis_url"),
        *("openai_api_key", "openai_base_url", "anthropic_api_key", "anthropic_base_url"),
        *("gemini_api_key", "gemini_base_url"),
        *("blob_store_url", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    }
)


def _setting(default: Any, doc: str, *, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


def _secret(doc: str) -> Any:
    """A text that is never shown."""
    return field(default="", repr=False, metadata={"doc": doc, "low": None, "high": None, "secret": True})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a process of the gateway may be told. Units are the last word of each name."""

    host: str = _setting("127.0.0.1", "Address the public API listens on.")
    port: int = _setting(8080, "Port of the public API.", low=1, high=65535)
    admin_host: str = _setting("127.0.0.1", "Address of /metrics and the process health; keep it on loopback.")
    admin_port: int = _setting(0, "Port of the admin listener; 0 means port + 1.", low=0, high=65535)
    public_url: str = _setting("", "Absolute root customers reach us at; empty means http://host:port.")
    upload_port: int = _setting(
        0, "Port for uploads of large documents; 0 means port + 2, or any if that is taken.", low=0, high=65535
    )
    upload_url: str = _setting("", "Absolute root customers reach that port at; empty means http://host:upload_port.")
    workers: int = _setting(1, "Worker processes that share the port.", low=1, high=256)
    data_dir: str = _setting(".data", "Folder of journals and of the embedded databases.")
    database_url: str = _setting("", "postgres://… of an external cluster; empty means embedded.")
    redis_url: str = _setting(
        "",
        "redis://, redis+sentinel:// or redis+cluster:// (with TLS rediss…) of external servers; empty means embedded.",
    )
    shards: int = _setting(
        1, "Credit shards (hash tags) in Redis; never change it on a filled ledger.", low=1, high=1024
    )
    redis_timeout_s: float = _setting(2.0, "Deadline of one call to Redis.", low=0.05, high=60)
    postgres_timeout_s: float = _setting(5.0, "Deadline of one query.", low=0.05, high=300)
    postgres_pool_size: int = _setting(4, "Connections a worker may open to Postgres.", low=1, high=100)

    max_body_bytes: int = _setting(20 * 1024 * 1024, "Largest request body.", low=1024, high=1 << 30)
    max_header_bytes: int = _setting(32 * 1024, "Largest request head (line and headers).", low=1024, high=1 << 20)
    max_headers: int = _setting(100, "Most header lines in one request.", low=10, high=1000)
    max_connections: int = _setting(20_000, "Open client connections of one worker.", low=1, high=1_000_000)
    max_buffered_bytes: int = _setting(
        256 * 1024 * 1024, "Request bodies that one worker may hold in memory at once.", low=1 << 20, high=1 << 36
    )
    max_answer_bytes: int = _setting(32 * 1024 * 1024, "Largest whole answer of a backend.", low=1024, high=1 << 30)
    max_event_bytes: int = _setting(1024 * 1024, "Largest single SSE event of a backend.", low=1024, high=1 << 28)
    head_timeout_s: float = _setting(10.0, "Time a client has to send a request's head.", low=0.1, high=300)
    body_timeout_s: float = _setting(30.0, "Time a client has to send a request's body.", low=0.1, high=600)
    keepalive_timeout_s: float = _setting(75.0, "Idle time before a client connection is closed.", low=1, high=3600)
    write_timeout_s: float = _setting(
        60.0, "How long a client may refuse to read before it counts as gone.", low=1, high=600
    )
    drain_timeout_s: float = _setting(30.0, "How long running requests may finish after SIGTERM.", low=0, high=3600)

    connect_timeout_s: float = _setting(5.0, "Deadline to connect to a backend.", low=0.05, high=60)
    idle_timeout_s: float = _setting(
        60.0, "Silence of a backend inside an answer before it counts as dead.", low=0.1, high=3600
    )
    commit_stream_s: float = _setting(
        1.0, "Wait for the backend's head before a stream's 200 is sent anyway.", low=0, high=30
    )
    stream_heartbeat_s: float = _setting(10.0, "Silence in a stream before a comment line is sent.", low=0.1, high=15)
    health_interval_s: float = _setting(2.0, "Time between health probes of a backend.", low=0.05, high=300)
    health_timeout_s: float = _setting(2.0, "Deadline of one health probe.", low=0.05, high=60)
    pool_idle_s: float = _setting(30.0, "Idle time before a kept backend connection is closed.", low=0.1, high=600)
    pool_max_idle: int = _setting(256, "Idle connections kept per backend.", low=0, high=100_000)
    pool_max_connections: int = _setting(4096, "Connections per backend; more requests get 503.", low=1, high=1_000_000)

    model_folders: str = _setting(
        "", "Folder with a folder for each model on Triton, by its id: tokenizer and chat template; empty means none."
    )

    hold_expiry_s: float = _setting(30.0, "A hold without a heartbeat is reaped after this time.", low=1, high=3600)
    hold_heartbeat_s: float = _setting(3.0, "Time between heartbeats of the open holds of a worker.", low=0.2, high=600)
    keep_closed_s: float = _setting(
        86_400.0,
        "How long Redis remembers closed holds (about 235 bytes each) and idempotency keys.",
        low=60,
        high=31 * 86_400,
    )
    escrow_slice_micros: int = _setting(
        100_000, "Least credit (micro-USD) that is granted to Redis at a time.", low=1, high=1 << 40
    )
    escrow_horizon_s: float = _setting(
        30.0, "An active organization has what it spends in this time in Redis.", low=1, high=3600
    )
    escrow_idle_s: float = _setting(
        300.0, "Credit that nobody spent from for so long goes back to Postgres.", low=0.5, high=86_400
    )
    epoch_grace_s: float = _setting(
        60.0, "How long credit stays frozen after Redis has lost it, so that late charges find it.", low=1, high=86_400
    )
    key_cache_size: int = _setting(100_000, "API keys a worker remembers.", low=1, high=10_000_000)
    resync_s: float = _setting(30.0, "Time between full resyncs of endpoints and prices.", low=0.1, high=3600)
    max_staleness_s: float = _setting(
        10.0, "How long cached keys are trusted while notifications are cut off.", low=0.1, high=3600
    )
    key_requests_per_minute: int = _setting(0, "Default limit per key; 0 means none.", low=0, high=1 << 31)
    key_tokens_per_minute: int = _setting(0, "Default limit per key; 0 means none.", low=0, high=1 << 40)
    key_concurrent: int = _setting(0, "Default open requests per key; 0 means none.", low=0, high=1 << 31)
    deploy_timeout_s: float = _setting(600.0, "How long a model may take to become ready.", low=1, high=86_400)
    max_engines: int = _setting(8, "Engines that this host runs for deploys at once.", low=0, high=1000)
    kubernetes_url: str = _setting("", "API server for engines in a cluster; empty means that of this pod, if any.")
    kubernetes_token_file: str = _setting("", "File with the bearer token for that server.")
    kubernetes_ca_file: str = _setting("", "File with the certificate authority of that server.")
    engine_linger_s: float = _setting(
        60.0, "How long an engine or model that no endpoint wants any more is kept.", low=0, high=86_400
    )
    max_endpoints: int = _setting(100, "Endpoints that an organization may have.", low=1, high=1_000_000)
    openai_api_key: str = _secret("Key for evals of OpenAI's models; empty means that they cannot be asked.")
    openai_base_url: str = _setting("", "Root of OpenAI's API; empty means its own.")
    anthropic_api_key: str = _secret("Key for evals of Anthropic's models; empty means that they cannot be asked.")
    anthropic_base_url: str = _setting("", "Root of Anthropic's API; empty means its own.")
    gemini_api_key: str = _secret("Key for evals of Google's models; empty means that they cannot be asked.")
    gemini_base_url: str = _setting("", "Root of Gemini's API; empty means its own.")
    demo_vendor_url: str = _setting(
        "", "Root of the engine that plays a vendor in the demonstration; empty means that there is none."
    )
    judge_model: str = _setting(
        "",
        "The model that grades for the scorer `judge` and live answers: a vendor's on the roster, or an open one's id.",
    )
    judge_share: float = _setting(0.0, "Share of live answers that are judged, 0 to 1.", low=0, high=1)
    blob_store_url: str = _setting(
        "",
        "Where documents of evals lie: file:///folder or s3://bucket/prefix?endpoint=…&region=…;"
        " empty means the data folder.",
    )
    aws_access_key_id: str = _setting("", "Who asks that bucket.")
    aws_secret_access_key: str = _secret("Proof of who asks that bucket.")
    aws_session_token: str = _secret("Goes with credentials that end by themselves; empty means none.")
    log_requests: bool = _setting(True, "Write one structured line per request to standard output.")

    @property
    def effective_admin_port(self) -> int:
        """The admin listener's port, resolved."""
        return self.admin_port or self.port + 1

    @property
    def effective_public_url(self) -> str:
        """The absolute root, without a trailing slash."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def data_path(self) -> Path:
        """The data folder as an absolute path."""
        return Path(self.data_dir).expanduser().absolute()

    @property
    def journals(self) -> Path:
        """The folder of the journals, one for each process that settles."""
        return self.data_path / "journal"

    @property
    def control_file(self) -> Path:
        """Where the control process says how its workers reach it."""
        return self.data_path / "run" / "control.json"


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings.

    Args:
        environ: stands in for ``os.environ`` (tests).
        overrides: command-line values; ``None`` means not given.

    Raises:
        SettingsError: a value has the wrong type or is out of bounds, or a name is unknown.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    known = {f.name: f for f in fields(Settings)}
    config = env.get("PARETA_CONFIG")
    if config:
        for name, value in _read_toml(Path(config)).items():
            if name not in known:
                raise SettingsError(f"{config}: there is no setting named {name!r}.")
            values[name] = value
    for name in known:
        for variable in (f"PARETA_{name.upper()}", name.upper() if name in BARE_NAMES else None):
            if variable and env.get(variable):
                values[name] = env[variable]
    values.update({name: value for name, value in overrides.items() if value is not None})
    return _checked(Settings(**{name: _convert(known[name], value) for name, value in values.items()}))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} is not TOML: {error}.") from error


def _convert(spec: Any, value: Any) -> Any:
    wanted = {"str": str, "int": int, "float": float, "bool": bool}[str(spec.type)]
    name = spec.name
    try:
        if wanted is bool and not isinstance(value, bool):
            value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[str(value).lower()]
        elif wanted is int and isinstance(value, bool | float):
            raise ValueError
        else:
            value = wanted(value)
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"{name} must be {_article(wanted)}, got {value!r}. {spec.metadata['doc']}") from None
    low, high = spec.metadata["low"], spec.metadata["high"]
    # The comparison is written so that NaN fails it.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise SettingsError(f"{name} must be between {low:g} and {high:g}, got {value:g}. {spec.metadata['doc']}")
    return value


def _article(wanted: type) -> str:
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[wanted]


def _checked(settings: Settings) -> Settings:
    for name, schemes in (
        ("database_url", ("postgres", "postgresql")),
        ("public_url", ("http", "https")),
        ("upload_url", ("http", "https")),
    ):
        value = getattr(settings, name)
        if value and urlsplit(value).scheme not in schemes:
            raise SettingsError(f"{name} must start with {' or '.join(s + '://' for s in schemes)}.")
    for name in ("openai", "anthropic", "gemini"):
        # Both travel in a request's head; what is wrong with them is better known before the first eval.
        key = getattr(settings, f"{name}_api_key")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError(f"{name}_api_key must be a word of printable ASCII, without a space or a new line.")
        if not _is_root(getattr(settings, f"{name}_base_url")):
            raise SettingsError(f"{name}_base_url must be empty, or an address such as https://api.example.com.")
    if settings.redis_url:
        from ledger.counter.url import read_redis_url  # brings redis-py, which few commands of the CLI need

        try:
            read_redis_url(settings.redis_url)
        except ValueError as error:
            raise SettingsError(f"redis_url cannot be used. {error}") from None
    if settings.blob_store_url:
        try:
            place = read_blob_url(settings.blob_store_url)
        except BlobUrlInvalid as error:
            raise SettingsError(f"blob_store_url cannot be used. {error}") from None
        if isinstance(place, Bucket) and not (settings.aws_access_key_id and settings.aws_secret_access_key):
            raise SettingsError(
                "blob_store_url is a bucket: aws_access_key_id and aws_secret_access_key must be given."
            )
    if settings.hold_heartbeat_s * 3 > settings.hold_expiry_s:
        raise SettingsError(
            "hold_expiry_s must be at least three times hold_heartbeat_s, or live holds would be reaped."
        )
    if settings.admin_port == settings.port or (not settings.admin_port and settings.port == 65535):
        raise SettingsError("admin_port must differ from port.")
    return settings


def _is_root(url: str) -> bool:
    """Whether a text is empty or the root of an HTTP API."""
    try:
        parts = urlsplit(url)
        return not url or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
    except ValueError:
        return False
