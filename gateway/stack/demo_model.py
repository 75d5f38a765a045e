"""The model folder of the demo on Triton: a chat template and a tokenizer, as an operator has them for a real model.

Floor: stack. All of it is made here, from the simulator's own words: the template writes the ChatML format with tools,
the tokenizer is a small byte-level one. Written once; a folder that is there is left alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from backends.simulator.vocabulary import PLAIN, corpus

CONTEXT_TOKENS = 32_768
_VOCABULARY = 2_000
_OPENS, _CLOSES, _END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'You may call these functions:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\nTo call one, write <tool_call>{"name": …, "arguments": …}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif not (loop.first and tools and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {{- message.content or '' }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' }}
            {{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
            {{- '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def write_demo_model(folder: Path) -> Path:
    """Write the folder, unless it is there. Takes about a second. Returns it."""
    if folder.is_dir():
        return folder
    new = folder.with_name(f"{folder.name}.new-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    tokenizer = _train()
    tokenizer.save(str(new / "tokenizer.json"))
    end = tokenizer.token_to_id(_CLOSES)
    for name, content in (
        ("config.json", {"max_position_embeddings": CONTEXT_TOKENS, "eos_token_id": end}),
        ("generation_config.json", {"eos_token_id": [end], "temperature": 1.0}),
        (
            "tokenizer_config.json",
            {"eos_token": _CLOSES, "pad_token": _END, "chat_template": _TEMPLATE, "model_max_length": CONTEXT_TOKENS},
        ),
    ):
        (new / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    new.rename(folder)
    return folder


def _train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_OPENS, _CLOSES, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    return tokenizer


def _sentences() -> Iterator[str]:
    text = corpus(PLAIN)
    for start in text.starts[:1000]:
        yield "".join(text.stretch(start, 20))
