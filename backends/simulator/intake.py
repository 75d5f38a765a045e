"""Reads request bodies once: a body that was seen before costs a look-up, which is what load generators send.

Reading is a pure function of route and bytes, so what was read may be kept; it must not be changed. Bounded.
"""

from dataclasses import dataclass

from backends.simulator.options import SimOptions
from backends.simulator.schema import (
    EmbeddingRequest,
    GenerationRequest,
    Json,
    Route,
    read_chat,
    read_completion,
    read_embedding,
    read_json,
    read_options,
)
from backends.simulator.settings import SimulatorSettings

KEPT = 512
KEPT_BODY_BYTES = 16 * 1024

_PROMPT_FIELDS = frozenset({"messages", "prompt", "input", "tools"})


@dataclass(slots=True)
class Taken:
    """A body that was read, as far as it was needed.

    Attributes:
        shown: what records keep of it.
        options: of its `sim` field.
        checked: the checked request, once somebody asked for it.
    """

    body: Json
    shown: Json
    fields: tuple[str, ...]
    model: str | None
    stream: bool
    options: SimOptions
    checked: GenerationRequest | EmbeddingRequest | None = None


class Intake:
    """Reads bodies and remembers the latest short ones."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self._kept: dict[tuple[Route, bytes], Taken] = {}

    def take(self, route: Route, raw: bytes) -> Taken:
        """Read a body as far as its JSON and its `sim` options. Raises: Refusal."""
        found = self._kept.get((route, raw))
        if found is None:
            found = self._read(raw)
            if len(raw) <= KEPT_BODY_BYTES:
                if len(self._kept) >= KEPT:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[route, raw] = found
        return found

    def generation(self, taken: Taken, route: Route) -> GenerationRequest:
        """The checked chat or text completion request. Raises: Refusal."""
        if not isinstance(taken.checked, GenerationRequest):
            read = read_chat if route is Route.CHAT else read_completion
            taken.checked = read(taken.body, self._settings.context_tokens)
        return taken.checked

    def embedding(self, taken: Taken) -> EmbeddingRequest:
        """The checked embeddings request. Raises: Refusal."""
        if not isinstance(taken.checked, EmbeddingRequest):
            taken.checked = read_embedding(taken.body, self._settings.context_tokens)
        return taken.checked

    def _read(self, raw: bytes) -> Taken:
        body = read_json(raw)
        model = body.get("model")
        keep_all = self._settings.keep_bodies
        return Taken(
            body=body,
            shown=body if keep_all else {name: value for name, value in body.items() if name not in _PROMPT_FIELDS},
            fields=tuple(body),
            model=model if isinstance(model, str) else None,
            stream=body.get("stream") is True,
            options=read_options(body.get("sim")),
        )
