"""Chat templates in our own words for the conversation formats of well-known families.

Each writes the format that its family documents, special tokens included, and leaves out what tests don't need.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LLAMA3 = """\
{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set today = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set today = "26 Jul 2024" %}
{%- endif %}
{%- set ns = namespace(system="", rest=messages) %}
{%- if messages[0].role == "system" %}
    {%- set ns.system = messages[0].content | trim %}
    {%- set ns.rest = messages[1:] %}
{%- endif %}
{%- macro header(role) %}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{{- header("system") }}
{{- "Today Date: " ~ today ~ "\\n\\n" ~ ns.system ~ "<|eot_id|>" }}
{%- for message in ns.rest %}
    {%- if loop.first and tools %}
        {%- if message.role != "user" %}
            {{- raise_exception("The functions are told in the first user message, and there is none.") }}
        {%- endif %}
        {{- header("user") }}
        {{- 'Answer with a call, as {"name": ..., "parameters": {...}}, of one of these functions.\\n\\n' }}
        {%- for tool in tools %}
            {{- tool | tojson(indent=4) ~ "\\n\\n" }}
        {%- endfor %}
        {{- message.content | trim ~ "<|eot_id|>" }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("One call at a time.") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- header("assistant") }}
        {{- '{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments | tojson ~ "}<|eot_id|>" }}
    {%- elif message.role in ("tool", "ipython") %}
        {{- header("ipython") ~ message.content | tojson ~ "<|eot_id|>" }}
    {%- else %}
        {{- header(message.role) ~ message.content | trim ~ "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header("assistant") }}
{%- endif %}
"""

CHATML = """\
{%- set ns = namespace(system=none, rest=messages) %}
{%- if messages[0].role == "system" %}
    {%- set ns.system = messages[0].content %}
    {%- set ns.rest = messages[1:] %}
{%- endif %}
{%- if tools or ns.system is not none %}
    {{- "<|im_start|>system\\n" ~ (ns.system or "") }}
    {%- if tools %}
        {{- "\\n\\n" if ns.system }}
        {{- "# Tools\\n\\nThese functions may be called:\\n<tools>" }}
        {%- for tool in tools %}
            {{- "\\n" ~ tool | tojson }}
        {%- endfor %}
        {{- '\\n</tools>\\n\\nCall one like this:\\n<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>' }}
    {%- endif %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in ns.rest %}
    {%- if message.role == "tool" %}
        {%- if loop.first or loop.previtem.role != "tool" %}
            {{- "<|im_start|>user" }}
        {%- endif %}
        {{- "\\n<tool_response>\\n" ~ message.content ~ "\\n</tool_response>" }}
        {%- if loop.last or loop.nextitem.role != "tool" %}
            {{- "<|im_end|>\\n" }}
        {%- endif %}
        {%- continue %}
    {%- endif %}
    {{- "<|im_start|>" ~ message.role ~ "\\n" }}
    {%- generation %}
        {%- if message.role == "assistant" and "</think>" in message.content %}
            {{- message.content.split("</think>")[-1].lstrip("\\n") }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- "\\n" if message.content or not loop.first }}
            {{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
            {{- "}\\n</tool_call>" }}
        {%- endfor %}
    {%- endgeneration %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """\
{%- set ns = namespace(system="", rest=messages, turn=0) %}
{%- if messages[0].role == "system" %}
    {%- set ns.system = messages[0].content ~ "\\n\\n" %}
    {%- set ns.rest = messages[1:] %}
{%- endif %}
{%- set asked = ns.rest | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in ns.rest %}
    {%- if message.role in ("user", "assistant") and not message.tool_calls %}
        {%- if (message.role == "user") != (ns.turn % 2 == 0) %}
            {{- raise_exception("User and assistant must take turns.") }}
        {%- endif %}
        {%- set ns.turn = ns.turn + 1 %}
    {%- endif %}
    {%- if message.role == "user" %}
        {%- if message == asked[-1] and tools %}
            {{- "[AVAILABLE_TOOLS] " ~ tools | tojson ~ "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " ~ (ns.system if message == asked[-1]) ~ message.content ~ "[/INST]" }}
    {%- elif message.tool_calls %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}
                {{- raise_exception("The id of a call has nine characters.") }}
            {%- endif %}
            {{- (call.function | tojson)[:-1] ~ ', "id": "' ~ call.id ~ '"}' ~ (", " if not loop.last) }}
        {%- endfor %}
        {{- "]" ~ eos_token }}
    {%- elif message.role == "assistant" %}
        {{- " " ~ message.content ~ eos_token }}
    {%- elif message.role == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' ~ message.content | tojson ~ ', "call_id": "' }}
        {{- message.tool_call_id ~ '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("No such role.") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == "system" %}
    {{- raise_exception("There is no system role.") }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("User and assistant must take turns.") }}
    {%- endif %}
    {{- "<start_of_turn>" ~ ("model" if message.role == "assistant" else message.role) ~ "\\n" }}
    {%- if message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}
            {{- "<start_of_image>" if part.type == "image" else part.text | trim }}
        {%- endfor %}
    {%- endif %}
    {{- "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<start_of_turn>model\\n" }}
{%- endif %}
"""


@dataclass(frozen=True, slots=True)
class Format:
    """A family: its template and the special tokens that it writes."""

    template: str
    bos: str | None
    ends: tuple[str, ...]
    others: tuple[str, ...] = ()
    adds_bos: bool = True
    """Its tokenizer begins a plain prompt with ``bos``."""
    generation: dict[str, float | bool | int] = field(default_factory=dict)

    @property
    def special_tokens(self) -> dict[str, str]:
        """As templates name them."""
        tokens = {"eos_token": self.ends[0]}
        return tokens if self.bos is None else {"bos_token": self.bos, **tokens}


FORMATS: dict[str, Format] = {
    "llama3": Format(
        LLAMA3,
        bos="<|begin_of_text|>",
        ends=("<|eot_id|>", "<|eom_id|>"),
        others=("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    ),
    "chatml": Format(
        CHATML,
        bos=None,
        ends=("<|im_end|>", "<|endoftext|>"),
        others=("<|im_start|>",),
        adds_bos=False,
        generation={"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    ),
    "mistral": Format(
        MISTRAL,
        bos="<s>",
        ends=("</s>",),
        others=("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
    ),
    "gemma": Format(
        GEMMA,
        bos="<bos>",
        ends=("<end_of_turn>", "<eos>"),
        others=("<start_of_turn>",),
        generation={"top_k": 64, "top_p": 0.95},
    ),
}
