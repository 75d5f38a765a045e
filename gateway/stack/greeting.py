"""What `up` prints when it is ready: how to call it, and one line for scripts.

Floor: stack.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text


def show_greeting(
    *, base_url: str, admin_url: str, api_key: str, endpoint_id: str, folder: Path, engine: str, also: str
) -> None:
    """Print snippets for curl and openai, then the line that starts with ``ready``, to standard output.

    Args:
        engine: a sentence about what the endpoint stands on.
        also: a sentence about the other endpoint, or why there is none; may be empty.
    """
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    words = {"base_url": base_url, "api_key": api_key, "endpoint": endpoint_id, "data_dir": shlex.quote(str(folder))}
    console.print("\nPareta Gateway is ready", style="bold")
    console.print(f"{engine} Answers are made up; tokens, prices and charges are real.", markup=False)
    console.print(f"{also}\n" if also else "", markup=False)
    for title, language, code in (
        ("curl", "bash", _CURL.format(**words)),
        ("python (pip install openai)", "python", _OPENAI.format(**words)),
        ("what did it cost?", "bash", _OPERATOR.format(**words)),
    ):
        console.print(Text(f"# {title}", style="bold"))
        console.print(Syntax(code, language, background_color="default") if console.is_terminal else Text(code))
        console.print()
    console.print(f"metrics {admin_url}/metrics, logs {folder / 'logs'}, stop with Ctrl-C\n", markup=False)
    print(ready_line(base_url=base_url, api_key=api_key, endpoint_id=endpoint_id, folder=folder), flush=True)


def ready_line(*, base_url: str, api_key: str, endpoint_id: str, folder: Path) -> str:
    """The line for scripts; values are quoted as a POSIX shell would want them."""
    fields = {"base_url": base_url, "api_key": api_key, "endpoint": endpoint_id, "data_dir": str(folder)}
    return " ".join(["ready", *(f"{name}={shlex.quote(value)}" for name, value in fields.items())])


_CURL = """\
curl -N {base_url}/v1/chat/completions \\
  -H 'Authorization: Bearer {api_key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "{endpoint}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""

_OPENAI = """\
from openai import OpenAI

client = OpenAI(base_url="{base_url}/v1", api_key="{api_key}")
stream = client.chat.completions.create(
    model="{endpoint}",
    messages=[{{"role": "user", "content": "Hello!"}}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)"""

_OPERATOR = """\
.venv/bin/python -m gateway credit show Demo --data-dir {data_dir}
.venv/bin/python -m gateway receipt <x-request-id of an answer> --data-dir {data_dir}"""
