"""`python -m backends.simulator`: the flags of one simulator process."""

import sys

import click

from backends.simulator.settings import BadSetting, SimulatorSettings

_DEFAULTS = SimulatorSettings()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--model",
    "models",
    multiple=True,
    default=_DEFAULTS.models,
    metavar="ID",
    help="Id to serve; may be given several times. An id that ends in -unicode answers in awkward text.",
)
@click.option("--host", default=_DEFAULTS.host, help="Address to listen on.")
@click.option("--port", default=_DEFAULTS.port, help="Port to listen on; 0 picks a free one.")
@click.option("--ttft-ms", default=_DEFAULTS.ttft_ms, help="Milliseconds to the first token.")
@click.option("--itl-ms", default=_DEFAULTS.itl_ms, help="Milliseconds between tokens; 0 sends answers at once.")
@click.option("--tokens", default=_DEFAULTS.tokens, help="Usual length of an answer in tokens.")
@click.option("--speed", default=_DEFAULTS.speed, help="Divides both times.")
@click.option("--context", "context_tokens", default=_DEFAULTS.context_tokens, help="Tokens of prompt and answer.")
@click.option("--seed", default=_DEFAULTS.seed, help="With the request it decides every answer.")
@click.option("--max-concurrency", default=_DEFAULTS.max_concurrency, help="Requests at once; 0 for no limit.")
@click.option("--max-queue", default=_DEFAULTS.max_queue, help="Requests that wait beside those.")
@click.option("--overload-status", default=_DEFAULTS.overload_status, help="Answer to further ones: 503 or 429.")
@click.option("--replica", default=_DEFAULTS.replica, help="Name shown in headers, models and stats.")
@click.option("--dimensions", default=_DEFAULTS.dimensions, help="Length of an embedding.")
@click.option("--api-key", default=None, help="Bearer token that /v1/* wants.", metavar="KEY")
@click.option("--keep-alive-s", default=_DEFAULTS.keep_alive_s, help="Close idle connections after this; 0 never.")
@click.option("--keep-bodies", is_flag=True, help="Let /sim/requests show prompts too.")
def main(**flags: object) -> None:
    """Serve an OpenAI-compatible engine that simulates: it holds no model and makes its answers up."""
    try:
        settings = SimulatorSettings(**flags)  # type: ignore[arg-type]  # click checked the types
    except BadSetting as error:
        raise click.UsageError(str(error)) from None
    from backends.simulator.server import run  # after the flags: a wrong one needs no event loop

    sys.exit(run(settings))


if __name__ == "__main__":
    main(prog_name="simulator")
