"""One model on Triton as requests need it: which interface it speaks, how its prompts are written and counted.

Floor: edge; what it does with a request is pure. Made once for each load of the model, in a thread where files are
read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.wire.allowance import Allowance
from backends.wire.answer.styles import ReasoningMarks
from backends.wire.answer.writer import AnswerWriter
from backends.wire.failure import BackendFailure, FailureCode, Phase, Unsupported
from backends.wire.openai_sampling import read_sampling
from backends.wire.request import InferenceRequest, Kind
from backends.wire.sampling import GenerationDefaults, Sampling
from backends.wire.triton import Dialect, InputTensor, ModelInfo, Reader, detect

if TYPE_CHECKING:
    from backends.model_folder import ModelFolder

log = logging.getLogger("pareta.triton")

NOT_OF_COMPLETIONS = (
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "chat_template_kwargs",
)
"""What belongs to the prompt of a chat."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """What is sent for a request, and what its answer is read with."""

    inputs: list[InputTensor]
    sampling: Sampling
    prompt_tokens: int | None
    reasoning: ReasoningMarks | None


class TritonModel:
    """A model that can be asked.

    Args:
        info: what the server says of it.
        folder: its tokenizer and templates; without it only plain completions are possible.
        context_tokens: of prompt and answer together, as the operator says; a smaller bound of the folder counts.
        adds_begin: whether the server's tokenizer adds the model's special tokens to each text, as all do by default.

    Raises:
        UnknownInterface: with a sentence for the operator.
    """

    def __init__(
        self, info: ModelInfo, folder: ModelFolder | None, *, context_tokens: int, adds_begin: bool = True
    ) -> None:
        self.dialect: Dialect = detect(info)
        self._folder = folder
        bounds = [context_tokens]
        if folder is not None and folder.context_tokens is not None:
            bounds.append(folder.context_tokens)
            if bounds[1] < context_tokens:
                log.warning(
                    "The model %s reads %d tokens, fewer than its endpoint says (%d). Give the endpoint its context.",
                    info.name,
                    bounds[1],
                    context_tokens,
                )
        self._context_tokens = min(bounds)
        self._defaults = self.dialect.follow(folder.defaults if folder is not None else GenerationDefaults())
        tokenizer = folder.tokenizer if folder is not None else None
        self._count: Callable[[str], int] | None = (
            partial(tokenizer.count, add_special_tokens=False) if tokenizer is not None else None
        )
        self._adds_begin = adds_begin
        # What the server's tokenizer puts before every text must not stand there twice.
        self._begin = tokenizer.beginning if tokenizer is not None and adds_begin else ""

    def prepare(self, request: InferenceRequest) -> PreparedRequest:
        """Write the prompt and the tensors of a request.

        Raises:
            Unsupported: names what can't be honoured.
            BackendFailure: the prompt does not fit, or the operator gave no folder to write it with.
        """
        prompt = self._prompt(request)
        text = prompt.removeprefix(self._begin) if request.kind is Kind.CHAT else prompt
        prompt_tokens = self._prompt_tokens(text)
        sampling = read_sampling(
            request.body,
            request.kind,
            max_tokens=self._max_tokens(request.body.get("max_tokens"), prompt, prompt_tokens),
            completions=request.completions,
            defaults=self._defaults,
        )
        self.dialect.check(sampling)
        # Asked as a stream always: silence shows then, a stop text ends the work, and a hang-up reaches the model.
        inputs = self.dialect.encode(text, sampling, stream=True)
        return PreparedRequest(inputs, sampling, prompt_tokens, self._reasoning(prompt))

    def reader(self, prepared: PreparedRequest) -> Reader:
        """Reads the responses to a prepared request."""
        return self.dialect.reader(prepared.sampling)

    def writer(self, request: InferenceRequest, prepared: PreparedRequest, allow: Allowance) -> AnswerWriter:
        """Writes the public answer to a prepared request."""
        folder = self._folder
        ends = folder.stop_texts if folder is not None else ()
        return AnswerWriter(
            request,
            prompt_tokens=prepared.prompt_tokens,
            stop=(*prepared.sampling.stop, *ends),
            tools=folder.tool_style if folder is not None else None,
            reasoning=prepared.reasoning,
            count=self._counter(prepared.sampling.max_tokens),
            allow=allow,
        )

    def _counter(self, most: int) -> Callable[[str], int] | None:
        """Counts the tokens of a text. No engine made more than it was told to, however its tokens join again."""
        count = self._count
        return None if count is None else lambda text: min(count(text), most)

    # -- the prompt ----------------------------------------------------------------------------------------------------

    def _prompt(self, request: InferenceRequest) -> str:
        match request.kind:
            case Kind.CHAT:
                _refuse_any(request.body, ("prompt",))
                return self._rendered(request.body)
            case Kind.COMPLETION:
                _refuse_any(request.body, NOT_OF_COMPLETIONS)
                prompt = request.body["prompt"]
                if isinstance(prompt, list) and len(prompt) == 1:
                    prompt = prompt[0]
                if not isinstance(prompt, str):
                    raise Unsupported("prompt", "must be one text with this model")
                return prompt
            case Kind.EMBEDDING:
                raise Unsupported("model", "names an endpoint whose backend makes no embeddings")

    def _rendered(self, body: Mapping[str, Any]) -> str:
        folder = self._folder
        if folder is None or folder.template is None:
            raise BackendFailure(FailureCode.MISCONFIGURED, Phase.CONNECT)
        tools = body.get("tools") or None
        if tools is not None and body.get("tool_choice") == "none":
            tools = None
        if tools is not None and folder.tool_style is None:
            raise Unsupported("tools", "are not possible with this model")
        return folder.template.render(body["messages"], tools=tools, options=_options(body))

    def _prompt_tokens(self, text: str) -> int | None:
        """How many the server makes of a text, if there is a tokenizer to tell."""
        tokenizer = self._folder.tokenizer if self._folder is not None else None
        if tokenizer is None:
            return None
        return tokenizer.count(text, add_special_tokens=self._adds_begin)

    def _max_tokens(self, asked: int | None, prompt: str, prompt_tokens: int | None) -> int:
        if prompt_tokens is None:
            # No token is less than a byte: what is left then is surely there.
            room = self._context_tokens - len(prompt.encode("utf-8", "replace"))
            return asked if asked is not None else max(1, room)
        room = self._context_tokens - prompt_tokens
        if room < (asked or 1):
            raise BackendFailure(FailureCode.CONTEXT_LENGTH, Phase.CONNECT)
        return room if asked is None else asked

    def _reasoning(self, prompt: str) -> ReasoningMarks | None:
        marks = self._folder.reasoning if self._folder is not None else None
        if marks is None:
            return None
        return replace(marks, starts_open=prompt.rstrip().endswith(marks.opens))


def ask_for_one_token(model: TritonModel) -> list[InputTensor]:
    """The smallest question there is."""
    return model.dialect.encode("1", Sampling(max_tokens=1), stream=True)


def find_folder(candidates: list[str]) -> ModelFolder | None:
    """Read the first of these folders that exists; the operator hears of one that can't be read."""
    found = next((path for path in map(Path, candidates) if path.is_dir()), None)
    if found is None:
        return None
    from backends.model_folder import ModelFolderError, load_model_folder  # brings jinja2 and tokenizers

    try:
        return load_model_folder(found)
    except ModelFolderError as error:
        log.error("The model folder of a Triton backend can't be used. %s", error)
        return None


def _refuse_any(body: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if body.get(name) is not None:
            raise Unsupported(name, "does not belong to this kind of request")


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller tells the template besides messages and tools."""
    options = body.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise Unsupported("chat_template_kwargs", "must be an object")
    effort = body.get("reasoning_effort")
    return options if effort is None else {"reasoning_effort": effort, **options}
