"""What one simulator process was asked to be; set by the flags of `__main__`.

Pure values, checked where they are made.
"""

from dataclasses import dataclass

OWNER = "pareta-simulator"
DESCRIPTION = "A simulator: it makes its answers up from word lists and holds no model."
UNICODE_SUFFIX = "-unicode"
"""A model id that ends so answers in text that is awkward to carry."""


class BadSetting(ValueError):
    """A setting that makes no sense; the text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Settings of one simulator. Times in milliseconds, `0` limits mean "none".

    Attributes:
        models: ids served; the first is the default of embeddings without a model.
        ttft_ms: from the request to its first token.
        itl_ms: between two tokens; 0 sends an answer at once.
        tokens: the usual length of an answer; drawn by seed between half and one and a half times this.
        speed: divides both times.
        context_tokens: the most tokens of prompt and answer together.
        seed: with the request it decides every answer.
        max_concurrency: requests that generate at once.
        max_queue: requests that wait beside those; further ones get `overload_status`.
        replica: name shown in `/v1/models`, `/sim/stats`, `system_fingerprint` and the header `x-sim-replica`.
        dimensions: length of an embedding.
        api_key: if set, `/v1/*` wants it as a bearer token.
        keep_alive_s: how long a connection may be idle before it is closed.
        keep_bodies: whether `/sim/requests` keeps prompts too.
    """

    models: tuple[str, ...] = ("sim-8b",)
    host: str = "127.0.0.1"
    port: int = 9000
    ttft_ms: float = 50.0
    itl_ms: float = 10.0
    tokens: int = 64
    speed: float = 1.0
    context_tokens: int = 8192
    seed: int = 0
    max_concurrency: int = 0
    max_queue: int = 0
    overload_status: int = 503
    replica: str = "sim-0"
    dimensions: int = 64
    api_key: str | None = None
    keep_bodies: bool = False
    keep_alive_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            BadSetting: with a sentence that names the flag.
        """
        for flag, wrong, rule in (
            ("--model", not self.models or not all(self.models), "must be a non-empty id"),
            ("--model", len(set(self.models)) != len(self.models), "names the same id twice"),
            ("--port", not 0 <= self.port <= 65535, "must be from 0 to 65535"),
            ("--ttft-ms", not 0 <= self.ttft_ms <= 3_600_000, "must be from 0 to 3600000"),
            ("--itl-ms", not 0 <= self.itl_ms <= 3_600_000, "must be from 0 to 3600000"),
            ("--tokens", not 1 <= self.tokens <= 1_000_000, "must be from 1 to 1000000"),
            ("--speed", not 0.001 <= self.speed <= 1_000_000, "must be from 0.001 to 1000000"),
            ("--context", not 16 <= self.context_tokens <= 10_000_000, "must be from 16 to 10000000"),
            ("--max-concurrency", self.max_concurrency < 0, "must not be negative"),
            ("--max-queue", self.max_queue < 0, "must not be negative"),
            ("--overload-status", self.overload_status not in (429, 503), "must be 429 or 503"),
            ("--keep-alive-s", not 0 <= self.keep_alive_s <= 86_400, "must be from 0 to 86400"),
            ("--dimensions", not 1 <= self.dimensions <= 4096, "must be from 1 to 4096"),
        ):
            if wrong:
                raise BadSetting(f"{flag} {rule}.")
