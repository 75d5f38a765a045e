"""TensorRT-LLM's ``ensemble`` and ``tensorrt_llm_bls``: a tensor for every parameter, no finish reason.

Floor: wire (pure).
Source: TensorRT-LLM, triton_backend/all_models/inflight_batcher_llm, and its older home in tensorrtllm_backend.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.wire.failure import Unsupported
from backends.wire.sampling import GenerationDefaults, GuideKind, Piece, Sampling
from backends.wire.triton.dialect import Reader
from backends.wire.triton.draw import spelled_out
from backends.wire.triton.growth import Growth
from backends.wire.triton.inputs import (
    FLAGS,
    REAL_NUMBERS,
    TEXTS,
    WHOLE_NUMBERS,
    InputWriter,
    declared_types,
    refuse_other_required,
    require,
)
from backends.wire.triton.metadata import ModelInfo
from backends.wire.triton.outputs import Repeats, malformed, new_text, one_count
from backends.wire.triton.refusals import check_logprobs, check_numbers, followed
from backends.wire.triton.tensors import DataType, InputTensor, OutputTensor, read_numbers

REQUIRED_INPUTS = ("text_input", "max_tokens", "stream", "temperature", "top_k", "top_p")

REAL_FIELDS = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "repetition_penalty": ("repetition_penalty",),
}
WHOLE_FIELDS = {"top_k": ("top_k",), "min_tokens": ("min_tokens", "min_length"), "seed": ("seed", "random_seed")}
"""The names of each parameter's tensor: the newer one first, the one before early 2025 second."""

_KINDS: dict[str, frozenset[DataType]] = {
    **dict.fromkeys(("text_input", "stop_words", "bad_words"), TEXTS),
    **dict.fromkeys(("guided_decoding_guide_type", "guided_decoding_guide"), TEXTS),
    **dict.fromkeys(("max_tokens", "num_return_sequences"), WHOLE_NUMBERS),
    **dict.fromkeys(("stream", "exclude_input_in_output", "return_log_probs"), FLAGS),
    **dict.fromkeys(("return_num_input_tokens", "return_num_output_tokens"), FLAGS),
    **{name: REAL_NUMBERS for names in REAL_FIELDS.values() for name in names},
    **{name: WHOLE_NUMBERS for names in WHOLE_FIELDS.values() for name in names},
}

_GUIDES = {GuideKind.JSON: "json", GuideKind.JSON_SCHEMA: "json_schema"}


class EnsembleDialect:
    """One model that speaks like the ensemble."""

    name = "trtllm-ensemble"

    def __init__(self, info: ModelInfo) -> None:
        """Raises: UnknownInterface: something is missing."""
        require(info, "a TensorRT-LLM ensemble", inputs=REQUIRED_INPUTS, outputs=("text_output",))
        refuse_other_required(info, _KINDS)
        self._types = declared_types(info, _KINDS)
        self._batches = info.max_batch_size > 0
        # Words that must be there although nothing is asked of them get one empty text, which stands for none.
        self._must_have = {name for name in ("stop_words", "bad_words") if _is_required(info, name)}
        self._tensor_of = {
            field: next(name for name in names if name in self._types)
            for field, names in (REAL_FIELDS | WHOLE_FIELDS).items()
            if any(name in self._types for name in names)
        }
        is_bls = "num_draft_tokens" in info.inputs or "accumulate_tokens" in info.parameters
        # BLS declares num_return_sequences, but never hands it on.
        self._has_sequences = "num_return_sequences" in self._types and "sequence_index" in info.outputs and not is_bls
        self._has_guides = {"guided_decoding_guide_type", "guided_decoding_guide"} <= self._types.keys()
        self._has_logprobs = "return_log_probs" in self._types and "output_log_probs" in info.outputs
        # With this switch BLS sends all the text so far in each response, so that it never cuts a character.
        self._is_whole = info.parameters.get("accumulate_tokens", "").lower() in ("true", "1")
        self._counts_prompt = "return_num_input_tokens" in self._types and "num_input_tokens" in info.outputs
        self.reports_tokens = "return_num_output_tokens" in self._types and "num_output_tokens" in info.outputs
        # A stream has one token in each response and never the prompt, whatever the model can be asked for.
        self._must_stream = not self.reports_tokens or "exclude_input_in_output" not in self._types

    def follow(self, defaults: GenerationDefaults) -> GenerationDefaults:
        """What of the recommendations there are tensors for."""
        return followed(defaults, self._tensor_of)

    def check(self, sampling: Sampling) -> None:
        """Refuse what there are no tensors for.

        Raises:
            Unsupported: names the field of the request.
        """
        check_numbers(sampling, self._tensor_of)
        check_logprobs(sampling, has_chosen=self._has_logprobs)
        if sampling.completions > 1 and not self._has_sequences:
            raise Unsupported("n", "must be 1 with this model")
        if sampling.guide is not None and not self._has_guides:
            raise Unsupported("response_format", "must be text with this model, which has no guided decoding")

    def encode(self, prompt: str, sampling: Sampling, *, stream: bool) -> list[InputTensor]:
        """The tensors of a request. Raises: Unsupported: as ``check``."""
        self.check(sampling)
        drawn = spelled_out(sampling)
        write = InputWriter(self._types, batches=self._batches)
        write.texts("text_input", [prompt])  # BYTES [1] or [1, 1]
        write.number("max_tokens", sampling.max_tokens)
        write.number("stream", stream or self._must_stream)
        write.number("exclude_input_in_output", True)
        write.number("return_num_input_tokens", self._counts_prompt or None)
        write.number("return_num_output_tokens", self.reports_tokens or None)
        for field, tensor in self._tensor_of.items():
            if field == "seed":
                write.seed(tensor, sampling.seed)
            else:
                write.number(tensor, getattr(drawn, field))
        if sampling.stop or "stop_words" in self._must_have:
            write.texts("stop_words", sampling.stop or [""])  # BYTES [n] or [1, n]
        if "bad_words" in self._must_have:
            write.texts("bad_words", [""])
        if sampling.completions > 1:
            write.number("num_return_sequences", sampling.completions)
        if sampling.logprobs:
            write.number("return_log_probs", True)
        if sampling.guide is not None:
            write.texts("guided_decoding_guide_type", [_GUIDES[sampling.guide.kind]])
            if sampling.guide.kind is GuideKind.JSON_SCHEMA:
                write.texts("guided_decoding_guide", [sampling.guide.text])
        return write.tensors

    def reader(self, sampling: Sampling) -> Reader:
        """A reader for the responses to one request."""
        return EnsembleReader(
            sampling,
            reports_tokens=self.reports_tokens,
            counts_prompt=self._counts_prompt,
            has_sequences=self._has_sequences,
            is_whole=self._is_whole,
        )


class EnsembleReader:
    """Reads deltas, adds up their tokens, and tells from the sums why each choice ended."""

    __slots__ = (
        "_counts_prompt", "_growths", "_has_sequences", "_is_whole", "_last", "_repeats", "_reports", "_sampling",
        "_sums",
    )  # fmt: skip

    def __init__(
        self, sampling: Sampling, *, reports_tokens: bool, counts_prompt: bool, has_sequences: bool, is_whole: bool
    ) -> None:
        self._sampling = sampling
        self._reports = reports_tokens
        self._counts_prompt = counts_prompt
        self._has_sequences = has_sequences
        self._is_whole = is_whole
        self._growths: dict[int, Growth] = {}
        self._sums: dict[int, int] = {}
        self._repeats = Repeats("batch_index", "sequence_index", "num_output_tokens")
        self._last: tuple[int, int | None] = 0, None  # choice and tokens of the last response

    def read(self, outputs: Mapping[str, OutputTensor]) -> list[Piece]:
        """What is new in a response. Raises: BackendFailure: it is malformed."""
        text = self._repeats.text(outputs)
        if text is not None:
            choice, tokens = self._last
            self._sums[choice] += 1 if tokens is None else tokens
            return [Piece(choice, self._growths[choice].add(text), tokens)]
        return self._read_all(outputs)

    def _read_all(self, outputs: Mapping[str, OutputTensor]) -> list[Piece]:
        text = new_text(outputs)  # BYTES [1] or [1, 1]
        if text is None:
            return []
        choice = self._choice(outputs)
        before = self._sums.get(choice, 0)
        tokens = one_count(outputs, "num_output_tokens") if self._reports else None
        self._sums[choice] = before + (1 if tokens is None else tokens)
        piece = Piece(
            choice=choice,
            text=self._growth(choice).add(text),
            tokens=tokens,
            prompt_tokens=self._prompt_tokens(outputs),
            logprobs=self._logprobs(outputs, tokens, is_first=before == 0),
        )
        if not self._counts_prompt and not self._sampling.logprobs:
            self._last = choice, tokens
            self._repeats.note(outputs)
        return [piece]

    def finish(self) -> list[Piece]:
        """The end of every choice that began: ``length`` if it has as many tokens as it may have, else ``stop``."""
        return [
            Piece(
                choice=choice,
                text=self._growth(choice).rest(),
                tokens=0 if self._reports else None,
                finish="length" if tokens >= self._sampling.max_tokens else "stop",
            )
            for choice, tokens in sorted(self._sums.items())
        ]

    def _choice(self, outputs: Mapping[str, OutputTensor]) -> int:
        if one_count(outputs, "batch_index"):
            raise malformed()  # one prompt was sent, the batch has no second
        choice = (one_count(outputs, "sequence_index") or 0) if self._has_sequences else 0
        if choice >= self._sampling.completions:
            raise malformed()
        return choice

    def _growth(self, choice: int) -> Growth:
        growth = self._growths.get(choice)
        if growth is None:
            growth = self._growths[choice] = Growth(is_whole=self._is_whole)
        return growth

    def _prompt_tokens(self, outputs: Mapping[str, OutputTensor]) -> int | None:
        if not self._counts_prompt:
            return None
        count = one_count(outputs, "num_input_tokens")
        # Every response repeats it; the prompt of several choices is one.
        self._counts_prompt = count is None
        return count

    def _logprobs(
        self, outputs: Mapping[str, OutputTensor], tokens: int | None, *, is_first: bool
    ) -> tuple[float, ...] | None:
        tensor = (
            outputs.get("output_log_probs") if self._sampling.logprobs else None
        )  # FP32 [1, tokens], [1, 1, tokens]
        if tensor is None:
            return None
        values = read_numbers(tensor)
        new = 1 if tokens is None else tokens
        # Some versions repeat those of earlier tokens in front, some fill up behind.
        return tuple(values[:new] if is_first else values[max(0, len(values) - new) :])


def _is_required(info: ModelInfo, name: str) -> bool:
    tensor = info.inputs.get(name)
    return tensor is not None and not tensor.optional
