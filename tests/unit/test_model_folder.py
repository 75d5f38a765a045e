"""A model's folder is read as it comes; what is missing or broken is told to the operator in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.model_folder import MOST_CONFIG_BYTES, ModelFolderError, load_model_folder
from backends.wire.answer.styles import ReasoningMarks, ToolStyle
from backends.wire.sampling import GenerationDefaults
from tests.models.folders import CONTEXT_TOKENS, end_token_ids, tokenizer_json, write_json, write_model_folder
from tests.models.formats import FORMATS

USER = {"role": "user", "content": "Hi"}
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + PLAIN


def change(path: Path, **fields: Any) -> None:
    """Set fields of a file of JSON."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **fields})


def with_template(folder: Path, source: str) -> Path:
    write_model_folder(folder, "chatml")
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return folder


def complaint(folder: Path) -> str:
    """The sentence that a folder is refused with; it says where the trouble is."""
    with pytest.raises(ModelFolderError) as caught:
        load_model_folder(folder)
    sentence = str(caught.value)
    assert str(folder) in sentence
    assert sentence.endswith(".")
    return sentence


# -- whole folders -----------------------------------------------------------------------------------------------------

STYLES = {"llama3": ToolStyle.LLAMA3, "chatml": ToolStyle.HERMES, "mistral": ToolStyle.MISTRAL, "gemma": None}
DEFAULTS = {
    "llama3": GenerationDefaults(temperature=0.6, top_p=0.9),
    "chatml": GenerationDefaults(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05),
    "mistral": GenerationDefaults(),
    "gemma": GenerationDefaults(top_p=0.95, top_k=64),
}


@pytest.mark.parametrize("template_file", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_is_read_whole(tmp_path: Path, name: str, template_file: bool) -> None:
    """Template, tokenizer, defaults, end tokens, context, tool style and reasoning of each format are found."""
    form = FORMATS[name]
    folder = load_model_folder(write_model_folder(tmp_path, name, template_file=template_file))
    assert folder.template is not None
    assert folder.tokenizer is not None
    prompt = folder.template.render([USER])
    assert "Hi" in prompt
    assert prompt.startswith(form.bos or "<|im_start|>")
    assert folder.tokenizer.count("the model", add_special_tokens=False) > 0
    ends = end_token_ids(form, tokenizer_json(name))
    assert folder.defaults.stop_token_ids == ends
    expected = DEFAULTS[name]
    assert folder.defaults == GenerationDefaults(
        expected.temperature, expected.top_p, expected.top_k, expected.min_p, expected.repetition_penalty, ends
    )
    assert folder.stop_texts == (() if name == "mistral" else form.ends)
    assert folder.context_tokens == CONTEXT_TOKENS
    assert folder.tool_style is STYLES[name]
    assert folder.reasoning == (ReasoningMarks() if name == "chatml" else None)
    assert not folder.opens_with_reasoning
    assert folder.lacks == ()


def test_a_folder_of_a_tokenizer_alone(tmp_path: Path) -> None:
    """A model without a chat template can count and complete; the operator hears what it can't."""
    (tmp_path / "tokenizer.json").write_text(tokenizer_json("llama3"), encoding="utf-8")
    folder = load_model_folder(str(tmp_path))
    assert folder.template is None
    assert folder.tokenizer is not None
    assert folder.defaults == GenerationDefaults()
    assert (folder.stop_texts, folder.context_tokens, folder.tool_style, folder.reasoning) == ((), None, None, None)
    assert folder.lacks == (f"{tmp_path} holds no chat template: only plain completions are possible with this model.",)


def test_a_folder_without_a_tokenizer_file(tmp_path: Path) -> None:
    """A model whose tokenizer is of another kind can chat; the end token is known by its name."""
    write_model_folder(tmp_path, "gemma")
    (tmp_path / "tokenizer.json").unlink()
    folder = load_model_folder(tmp_path)
    assert folder.tokenizer is None
    assert folder.template is not None
    assert folder.stop_texts == ("<end_of_turn>",)
    assert len(folder.lacks) == 1
    assert "no tokenizer.json" in folder.lacks[0]


def test_a_folder_without_anything(tmp_path: Path) -> None:
    """A folder that is not a model's, or is none at all, is refused."""
    assert "neither tokenizer.json nor a chat template" in complaint(tmp_path)
    assert "is no folder" in complaint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is no folder" in complaint(tmp_path / "file")


# -- templates ---------------------------------------------------------------------------------------------------------


def test_a_template_file_counts_more_than_a_field(tmp_path: Path) -> None:
    """``chat_template.jinja`` is what newer tools write; the field beside it may be old."""
    write_model_folder(tmp_path, "llama3")
    (tmp_path / "chat_template.jinja").write_text("FILE" + PLAIN, encoding="utf-8")
    template = load_model_folder(tmp_path).template
    assert template is not None
    assert template.render([USER]) == "FILEHi"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def test_named_templates(tmp_path: Path) -> None:
    """Of a list of templates the default writes plain requests, and tool_use those with tools."""
    write_model_folder(tmp_path, "llama3")
    named = [{"name": "default", "template": "A" + PLAIN}, {"name": "tool_use", "template": "B<tool_call>" + TOOLS}]
    change(tmp_path / "tokenizer_config.json", chat_template=named)
    folder = load_model_folder(tmp_path)
    assert folder.template is not None
    assert folder.template.render([USER]) == "AHi"
    assert folder.template.render([USER], tools=[TOOL]) == "B<tool_call>" + json.dumps(TOOL) + "Hi"
    assert folder.tool_style is ToolStyle.HERMES


def test_templates_in_other_places(tmp_path: Path) -> None:
    """A folder of further templates, and the file of models that take images, are read, too."""
    write_model_folder(tmp_path, "llama3", template_file=True)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("T[TOOL_CALLS]" + TOOLS, encoding="utf-8")
    folder = load_model_folder(tmp_path)
    assert folder.template is not None
    assert folder.template.render([USER], tools=[TOOL]).startswith("T[TOOL_CALLS]")
    assert folder.tool_style is ToolStyle.MISTRAL
    (tmp_path / "chat_template.jinja").unlink()
    write_json(tmp_path / "chat_template.json", {"chat_template": "J" + PLAIN})
    other = load_model_folder(tmp_path).template
    assert other is not None
    assert other.render([USER]) == "JHi"


@pytest.mark.parametrize(
    ("source", "style"),
    [
        ("<tool_call>" + TOOLS, ToolStyle.HERMES),
        ("[TOOL_CALLS]" + TOOLS, ToolStyle.MISTRAL),
        ("<|python_tag|>" + TOOLS, ToolStyle.LLAMA3),
        ('{{ \'{"name": 1, "parameters": {}}\' }}' + TOOLS, ToolStyle.LLAMA3),
        ("<tool_call><function=" + TOOLS, None),
        (TOOLS, None),
        ("<tool_call>" + PLAIN, None),
    ],
)
def test_the_marks_of_a_template_tell_how_tools_are_called(
    tmp_path: Path, source: str, style: ToolStyle | None
) -> None:
    """A format that we can't read, or a template that leaves tools out, means that there are no tools."""
    assert load_model_folder(with_template(tmp_path, source)).tool_style is style


@pytest.mark.parametrize(
    ("end", "marks"),
    [
        ("<think>\n", ReasoningMarks(starts_open=True)),
        ("<think>\n\n</think>\n\n", ReasoningMarks()),
        ("{# </think> #}", ReasoningMarks()),
        ("[THINK][/THINK]", ReasoningMarks("[THINK]", "[/THINK]")),
        ("", None),
    ],
)
def test_the_marks_of_a_template_tell_of_reasoning(tmp_path: Path, end: str, marks: ReasoningMarks | None) -> None:
    """Reasoning is known by its marks, and as begun where the template has written the first."""
    source = PLAIN + "{% if '</think>' in messages[0].content %}{% endif %}" * (end == "<think>\n") + end
    folder = load_model_folder(with_template(tmp_path, source))
    assert folder.reasoning == marks
    assert folder.opens_with_reasoning == (marks is not None and marks.starts_open)


def test_special_tokens_reach_the_template(tmp_path: Path) -> None:
    """Tokens are text or objects, in either file; those without a value are as if they were not there."""
    with_template(tmp_path, "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ image_token }}" + PLAIN)
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": "<map>", "eos_token": "<old>"})
    write_json(
        tmp_path / "tokenizer_config.json",
        {"eos_token": {"content": "<new>"}, "pad_token": None, "image_token": "<img>", "add_bos_token": True},
    )
    template = load_model_folder(tmp_path).template
    assert template is not None
    assert template.render([USER]) == "<map><new><img>Hi"


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"text_config": {"max_position_embeddings": 2048}}, 2048),
        ({"n_positions": 1024, "max_position_embeddings": 4096}, 1024),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 2.5}}, 250),
        (
            {
                "max_position_embeddings": 100,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100},
            },
            400,
        ),
        (
            {
                "max_position_embeddings": 400,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100},
            },
            400,
        ),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": "many"}, None),
        ({}, None),
    ],
)
def test_the_context_is_what_the_config_says(tmp_path: Path, config: dict[str, Any], tokens: int | None) -> None:
    """Of all bounds the least counts, and a model that was stretched is as long as it was stretched."""
    write_model_folder(tmp_path, "chatml")
    write_json(tmp_path / "config.json", config)
    assert load_model_folder(tmp_path).context_tokens == tokens
    if tokens is None:
        change(tmp_path / "tokenizer_config.json", model_max_length=77)
        assert load_model_folder(tmp_path).context_tokens == 77


def test_end_tokens_of_the_config_count_where_the_generation_config_has_none(tmp_path: Path) -> None:
    """One id or several, at the top or among those of the text model."""
    write_model_folder(tmp_path, "llama3")
    eot, eom = end_token_ids(FORMATS["llama3"], tokenizer_json("llama3"))
    (tmp_path / "generation_config.json").unlink()
    write_json(tmp_path / "config.json", {"text_config": {"eos_token_id": [eom, eot, eom]}})
    folder = load_model_folder(tmp_path)
    assert folder.defaults.stop_token_ids == (eom, eot)
    assert folder.stop_texts == ("<|eom_id|>", "<|eot_id|>")


def test_numbers_that_ask_for_nothing(tmp_path: Path) -> None:
    """Null and a top_k of 0 or -1 leave the choice to the engine."""
    write_model_folder(tmp_path, "chatml")
    for top_k in (0, -1, None):
        write_json(tmp_path / "generation_config.json", {"top_k": top_k, "temperature": None, "max_length": 20})
        ends = load_model_folder(tmp_path).defaults.stop_token_ids
        assert load_model_folder(tmp_path).defaults == GenerationDefaults(stop_token_ids=ends)


# -- broken files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("generation_config.json", "temperature", "hot"),
        ("generation_config.json", "temperature", -1),
        ("generation_config.json", "top_p", 0),
        ("generation_config.json", "top_p", 1.5),
        ("generation_config.json", "top_k", 1.5),
        ("generation_config.json", "min_p", True),
        ("generation_config.json", "repetition_penalty", 0),
        ("generation_config.json", "eos_token_id", "</s>"),
        ("generation_config.json", "eos_token_id", [1, -1]),
        ("tokenizer_config.json", "chat_template", 5),
        ("tokenizer_config.json", "chat_template", [{"name": "default"}]),
        ("tokenizer_config.json", "chat_template", [{"name": "rag", "template": "x"}]),
    ],
)
def test_a_value_that_can_t_be_is_named(tmp_path: Path, file: str, field: str, value: Any) -> None:
    """The sentence names the field."""
    write_model_folder(tmp_path, "chatml")
    change(tmp_path / file, **{field: value})
    assert field.split("_")[0] in complaint(tmp_path)


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "is no valid JSON: line 1, column"),
        (b"[]", "holds no JSON object"),
        (b'{"a": "\xff"}', "is not written in UTF-8"),
        (b" " * (MOST_CONFIG_BYTES + 1), "is larger than"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, data: bytes, reason: str) -> None:
    """Whatever is wrong with a file of JSON, the sentence says which and what."""
    write_model_folder(tmp_path, "chatml")
    (tmp_path / file).write_bytes(data)
    sentence = complaint(tmp_path)
    assert f"{tmp_path / file} {reason}" in sentence


def test_broken_templates_and_tokenizers_are_named(tmp_path: Path) -> None:
    """A template that is no Jinja, a file where there should be none, a tokenizer cut short."""
    assert "no valid Jinja: line 2" in complaint(with_template(tmp_path, "\n{% for %}"))
    assert "can't write what a user says" in complaint(with_template(tmp_path, "no"))
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").mkdir()
    assert "chat_template.jinja can't be read" in complaint(tmp_path)
    (tmp_path / "chat_template.jinja").rmdir()
    (tmp_path / "tokenizer.json").write_text(tokenizer_json("chatml")[:1000], encoding="utf-8")
    assert "tokenizer.json can't be read by the tokenizers library" in complaint(tmp_path)


def test_a_byte_order_mark_is_no_trouble(tmp_path: Path) -> None:
    """Files that an editor has saved with a mark at the beginning are read."""
    write_model_folder(tmp_path, "chatml")
    config = tmp_path / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_model_folder(tmp_path).context_tokens == CONTEXT_TOKENS
