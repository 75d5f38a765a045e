"""serving: set, list. What serves the catalogue's open models; customers see none of it.

Floor: cli.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click
import orjson

from gateway.cli.output import show_list
from gateway.cli.place import Place, operator


@click.group()
def serving() -> None:
    """What serves the catalogue's open models."""


@serving.command("set")
@click.argument("model")
@click.option("--backend", "urls", multiple=True, metavar="URL", help="A running engine; may be repeated.")
@click.option("--command", metavar="LINE", help="Launch an engine on this host; {port} and {model} are filled in.")
@click.option("--env", "pairs", multiple=True, metavar="NAME=VALUE", help="For that engine; may be repeated.")
@click.option("--triton", "triton_url", metavar="URL", help="A model to load: triton://host:port/model.")
@click.option(
    "--kubernetes",
    "template",
    type=click.File("rb"),
    metavar="FILE",
    help="Deploy to a cluster; JSON with image, args, env, resources, replicas, port, namespace, pod.",
)
@click.option("--upstream-model", help="What the engines call it, where that is not its id.")
@click.option(
    "--model-folder",
    type=click.Path(resolve_path=True),
    metavar="DIR",
    help="For Triton: where the model's tokenizer and chat template lie on the workers' machine.",
)
@click.option("--backend-key-file", metavar="FILE", help="File on the workers' machine with the engines' own key.")
@click.option("--metrics-url", metavar="URL", help="Where the engine tells how busy it is.")
@click.option("--health-path", default="/health", show_default=True, help="What says that an engine is ready.")
@click.option("--strict-backend", is_flag=True, help="The engines refuse fields that they do not know.")
@click.option("--max-output-tokens", type=click.IntRange(1), help="The most that one answer may have.")
@click.option(
    "--idle-stop",
    "idle_s",
    type=click.IntRange(10),
    metavar="SECONDS",
    help="Put endpoints to sleep that nobody calls for so long; a call wakes them. Default: never.",
)
@operator
async def set_(
    place: Place,
    /,
    model: str,
    urls: tuple[str, ...],
    command: str | None,
    pairs: tuple[str, ...],
    triton_url: str | None,
    template: Any,
    upstream_model: str | None,
    model_folder: str | None,
    backend_key_file: str | None,
    metrics_url: str | None,
    health_path: str,
    strict_backend: bool,
    max_output_tokens: int | None,
    idle_s: int | None,
) -> None:
    """Say what serves MODEL (a real id of the catalogue). Deploys from now on use it.

    Either running engines (--backend), an engine that this host launches (--command), a model that is loaded on a
    Triton server (--triton), or a Deployment and a Service in a cluster (--kubernetes).

    \b
      serving set meta-llama/Llama-3.1-8B-Instruct --command 'vllm serve {model} --port {port}'
      serving set my-llama --command 'llama-server -m /models/my.gguf --port {port}' --upstream-model my-llama
      serving set my-trt --triton triton://gpu-1:8001/ensemble --model-folder /models/my-trt
    """
    from gateway.control.database import NotFound, Refused
    from gateway.control.deploys import store
    from gateway.control.endpoints import normal_url

    if not health_path.startswith("/"):
        raise Refused("The health path of a backend starts with a slash.")
    options: dict[str, Any] = {"health_path": health_path, "tolerates_unknown_fields": not strict_backend}
    if metrics_url is not None and not metrics_url.startswith(("http://", "https://")):
        raise Refused("The metrics page of an engine is an http:// or https:// address.")
    named = {"model_folder": model_folder, "api_key_file": backend_key_file, "metrics_url": metrics_url}
    options |= {name: value for name, value in named.items() if value is not None}
    if sum(map(bool, (urls, command, triton_url, template))) != 1:
        raise Refused("Give --backend, --command, --triton or --kubernetes: one of them.")
    driver = "static"
    spec: dict[str, Any] = {"options": options}
    if urls:
        spec["backends"] = [normal_url(url) for url in urls]
    elif command is not None:
        driver = "process"
        spec |= {"command": _words(command), "env": dict(_pair(pair) for pair in pairs)}
    elif triton_url is not None:
        driver, spec["url"] = "triton", triton_url
    else:
        driver, spec = "kubernetes", {**_template(template.read()), **spec}
    if upstream_model is not None:
        spec["model"] = upstream_model
    async with place.control() as conn:
        if not await conn.fetchval("SELECT true FROM control.model WHERE id = $1", model):
            raise NotFound(f"The catalogue has no open model {model!r}.")
        await store.register(conn, model, driver, spec, max_output_tokens=max_output_tokens, idle_s=idle_s)
    await _show(place)


def _words(command: str) -> list[str]:
    """The words of a command line, as a shell would cut it; none ever runs it."""
    from gateway.control.database import Refused

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Refused(f"The command line cannot be read: {error}.") from None
    if not words or not any("{port}" in word for word in words):
        raise Refused("The command line of an engine must hold {port}, where it is to listen.")
    return words


def _template(data: bytes) -> dict[str, Any]:
    from gateway.control.database import Refused

    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Refused(f"The template is not JSON: {error}.") from None
    if not isinstance(found, dict) or not isinstance(found.get("image"), str):
        raise Refused("The template must be a JSON object with an image.")
    return found


def _pair(text: str) -> tuple[str, str]:
    from gateway.control.database import Refused

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Refused(f"--env takes NAME=VALUE, not {text!r}.")
    return name, value


@serving.command("list")
@operator
async def list_(place: Place, /) -> None:
    """List what serves which model."""
    await _show(place)


def _served_by(spec: Mapping[str, Any]) -> str:
    return (
        ", ".join(spec.get("backends", []))
        or shlex.join(spec.get("command", []))
        or str(spec.get("url") or spec.get("image", ""))
    )


async def _show(place: Place) -> None:
    async with place.control() as conn:
        rows = await conn.fetch("SELECT model_id, driver, spec FROM control.serving ORDER BY model_id")
    found = [
        {
            "model": row["model_id"],
            "driver": row["driver"],
            "served_by": _served_by(orjson.loads(row["spec"])),
        }
        for row in rows
    ]
    show_list(
        place,
        found,
        columns=("model", "driver", "served_by"),
        title="What serves which model",
        empty="Nothing is registered, so nothing can be deployed.",
    )
