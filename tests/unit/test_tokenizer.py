"""Token counts are those of the model's own tokenizer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer

from backends.tokenizer import BrokenTokenizer, TextTokenizer
from backends.wire.chat_template import ChatTemplate
from tests.models.folders import tokenizer_json
from tests.models.formats import FORMATS

TEXTS = ["", "a", "the model answers", "Grüße, 世界 🙂", "<|im_start|>user\nhi<|im_end|>\n", "</s>", "\n\n  \t"]


@pytest.mark.parametrize("name", FORMATS)
def test_counts_are_the_tokenizers(name: str) -> None:
    """Every text has as many tokens as the tokenizer makes of it; only a format's own beginning is added, if asked."""
    form = FORMATS[name]
    counts, library = TextTokenizer(tokenizer_json(name)), Tokenizer.from_str(tokenizer_json(name))
    for text in TEXTS:
        bare = counts.count(text, add_special_tokens=False)
        assert bare == len(library.encode(text, add_special_tokens=False).ids)
        assert counts.count(text, add_special_tokens=True) == bare + form.adds_bos


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_has_its_beginning_once(name: str) -> None:
    """A rendered prompt is counted with the one beginning that its template wrote, and each mark is one token."""
    form = FORMATS[name]
    prompt = ChatTemplate(form.template, special_tokens=form.special_tokens).render([{"role": "user", "content": "hi"}])
    library = Tokenizer.from_str(tokenizer_json(name))
    ids = library.encode(prompt, add_special_tokens=False).ids
    assert TextTokenizer(tokenizer_json(name)).count(prompt, add_special_tokens=False) == len(ids)
    begins = [] if form.bos is None else [library.token_to_id(form.bos)]
    assert [token for token in ids if token in begins] == begins
    assert ids[: len(begins)] == begins


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_without_its_beginning_gets_it_from_the_engine(name: str) -> None:
    """What an engine adds by itself can be left out of a prompt: it then reads the very prompt that was written."""
    form = FORMATS[name]
    prompt = ChatTemplate(form.template, special_tokens=form.special_tokens).render([{"role": "user", "content": "hi"}])
    tokenizer, library = TextTokenizer(tokenizer_json(name)), Tokenizer.from_str(tokenizer_json(name))
    assert tokenizer.beginning == (form.bos or "")
    sent = prompt.removeprefix(tokenizer.beginning)
    assert library.encode(sent).ids == library.encode(prompt, add_special_tokens=False).ids
    assert tokenizer.count(sent, add_special_tokens=True) == tokenizer.count(prompt, add_special_tokens=False)


def test_a_files_own_bounds_change_no_count() -> None:
    """Truncation and padding left over from training don't make a long text short, nor a short one long."""
    written = json.loads(tokenizer_json("chatml"))
    written["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    written["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!",
    }  # fmt: skip
    bounded, free = TextTokenizer(json.dumps(written)), TextTokenizer(tokenizer_json("chatml"))
    for text in ("the model answers the user who asked a question", "a"):
        assert bounded.count(text, add_special_tokens=False) == free.count(text, add_special_tokens=False)


def test_half_a_character_is_counted() -> None:
    """A lone surrogate, which no engine can be sent, is counted as what stands for it and breaks nothing."""
    tokenizer = TextTokenizer(tokenizer_json("chatml"))
    assert tokenizer.count("a\ud83d b", add_special_tokens=False) == tokenizer.count("a? b", add_special_tokens=False)


def test_threads_share_a_tokenizer() -> None:
    """Counts made at the same time don't disturb each other."""
    tokenizer = TextTokenizer(tokenizer_json("llama3"))
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    alone = [tokenizer.count(text, add_special_tokens=True) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda text: tokenizer.count(text, add_special_tokens=True), texts))
    assert together == alone


def test_the_text_of_a_token() -> None:
    """Special tokens have the text that stands in a prompt, ordinary ones the text that they stand for."""
    tokenizer, library = TextTokenizer(tokenizer_json("llama3")), Tokenizer.from_str(tokenizer_json("llama3"))
    assert tokenizer.text_of(library.token_to_id("<|eot_id|>")) == "<|eot_id|>"
    assert tokenizer.text_of(library.encode(" the", add_special_tokens=False).ids[0]) == " the"
    assert tokenizer.text_of(10**6) is None


@pytest.mark.parametrize("source", ["", "{}", "no JSON", '{"model": {"type": "Unheard"}}'])
def test_a_file_that_is_no_tokenizer(source: str) -> None:
    """The operator gets a sentence, not the library's words."""
    with pytest.raises(BrokenTokenizer, match="check that the file is whole"):
        TextTokenizer(source)
