"""Write model folders as their makers lay them out, with a tokenizer trained here in a moment."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.models.formats import FORMATS, Format

TEXT = (
    "the model answers the user who asked a question about the weather in the city",
    "a token is a piece of a word and a word is a piece of a sentence",
    '{"name": "look_up", "arguments": {"city": "Paris"}}',
    "system user assistant tool think",
)
VOCABULARY = 400
CONTEXT_TOKENS = 4096


@cache
def tokenizer_json(name: str) -> str:
    """A byte-level BPE tokenizer of a format, as the text of ``tokenizer.json``."""
    form = FORMATS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT * 5, trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False, initial_alphabet=alphabet)
    )
    special = [text for text in (form.bos, *form.ends, *form.others) if text is not None]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if form.adds_bos and form.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{form.bos} $A", special_tokens=[(form.bos, tokenizer.token_to_id(form.bos))]
        )
    return tokenizer.to_str()


def write_model_folder(folder: Path, name: str, *, template_file: bool = False) -> Path:
    """Write the folder of a format.

    Args:
        folder: where; made if need be.
        name: of `tests.models.formats.FORMATS`.
        template_file: the template is a file of its own, else a field of ``tokenizer_config.json``.
    """
    form = FORMATS[name]
    folder.mkdir(parents=True, exist_ok=True)
    written = tokenizer_json(name)
    (folder / "tokenizer.json").write_text(written, encoding="utf-8")
    tokens: dict[str, Any] = dict(form.special_tokens)
    config = {**tokens, "model_max_length": 10**30, "add_bos_token": form.adds_bos}
    if template_file:
        (folder / "chat_template.jinja").write_text(form.template, encoding="utf-8")
    else:
        config["chat_template"] = form.template
    tokens["eos_token"] = {"content": form.ends[0], "special": True}  # both spellings are in use
    write_json(folder / "special_tokens_map.json", tokens)
    write_json(folder / "tokenizer_config.json", config)
    ends = end_token_ids(form, written)
    write_json(folder / "generation_config.json", {**form.generation, "eos_token_id": list(ends)})
    write_json(folder / "config.json", {"max_position_embeddings": CONTEXT_TOKENS, "eos_token_id": ends[0]})
    return folder


def end_token_ids(form: Format, written: str) -> tuple[int, ...]:
    """The ids of a format's end tokens in a tokenizer."""
    ids = {token["content"]: token["id"] for token in json.loads(written)["added_tokens"]}
    return tuple(ids[text] for text in form.ends)


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")
