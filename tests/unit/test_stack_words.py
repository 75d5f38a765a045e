"""What the stack writes for others to read: environments, the ready line, lock files."""

from __future__ import annotations

import asyncio
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import settings as gateway_settings
from gateway.settings import Settings
from gateway.stack.environment import environment_of, without_secrets
from gateway.stack.greeting import ready_line
from gateway.stack.stopping import StopRequest

ROOT = Path(__file__).parents[2]


@given(st.data())
def test_a_child_reads_the_settings_that_its_parent_has(data: st.DataObject) -> None:
    """Every setting, whatever its value, arrives in a child unchanged; nothing inherited overrides it."""
    values: dict[str, object] = {}
    for spec in fields(Settings):
        low, high = spec.metadata["low"], spec.metadata["high"]
        match str(spec.type):
            case "bool":
                values[spec.name] = data.draw(st.booleans())
            case "int":
                values[spec.name] = data.draw(st.integers(int(low), int(high)))
            case "float":
                values[spec.name] = data.draw(st.floats(low, high))
    values["data_dir"] = "/" + data.draw(st.text("abc ü'\"$", min_size=1))
    values["hold_heartbeat_s"], values["hold_expiry_s"] = 1.0, 30.0
    values["port"], values["admin_port"] = 8080, 9000
    settings = Settings(**values)  # type: ignore[arg-type]
    inherited = {"PORT": "1", "PARETA_PORT": "2", "DATA_DIR": "other", "PARETA_WORKERS": "77"}
    assert gateway_settings.load({**inherited, **environment_of(settings)}) == settings


def test_a_relative_data_folder_is_handed_on_as_an_absolute_one() -> None:
    """A child may run in another folder and still finds the same data."""
    assert Path(environment_of(replace(Settings(), data_dir=".data"))["DATA_DIR"]) == Path.cwd() / ".data"


def test_only_who_asks_vendors_gets_their_keys() -> None:
    """Neither from what is handed on nor from the operator's own environment."""
    keys = {"openai_api_key": "sk-1", "aws_access_key_id": "a", "aws_secret_access_key": "b"}
    settings = replace(Settings(), blob_store_url="s3://bucket?endpoint=http://s3&region=r", port=9000, **keys)  # type: ignore[arg-type]
    inherited = {
        "OPENAI_API_KEY": "sk-1",
        "PARETA_AWS_SECRET_ACCESS_KEY": "b",
        "BLOB_STORE_URL": settings.blob_store_url,
    }
    handed = without_secrets(environment_of(settings))
    assert "sk-1" not in handed.values()
    worker = gateway_settings.load({**inherited, **handed})
    assert (worker.openai_api_key, worker.aws_secret_access_key, worker.blob_store_url) == ("", "", "")
    assert (worker.port, worker.data_path) == (9000, settings.data_path)


@pytest.mark.parametrize("folder", ["/data", "/a path/with 'quotes'", "/dollar $HOME"])
def test_the_ready_line_can_be_split_by_a_shell(folder: str) -> None:
    """One line; its words are name=value by the quoting rules of a POSIX shell."""
    line = ready_line(
        base_url="http://127.0.0.1:8080", api_key="pareta_sk_a.b", endpoint_id="ep_a", folder=Path(folder)
    )
    assert "\n" not in line
    word, *pairs = shlex.split(line)
    assert word == "ready"
    assert dict(pair.split("=", 1) for pair in pairs) == {
        "base_url": "http://127.0.0.1:8080",
        "api_key": "pareta_sk_a.b",
        "endpoint": "ep_a",
        "data_dir": folder,
    }


@pytest.mark.parametrize("name", ["requirements-run.lock", "requirements-serve.lock"])
def test_the_locks_agree(name: str) -> None:
    """What runs in production and in `make run` is the version that the tests ran."""

    def versions(file: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9_-]+)==([^ ;\\]+)", (ROOT / file).read_text(), re.MULTILINE))

    tested, used = versions("requirements.lock"), versions(name)
    assert len(used) > 10
    assert {package: tested.get(package) for package in used} == used


async def test_a_pair_of_signals_is_no_haste() -> None:
    """SIGTERM to the whole group arrives twice at once: the drain goes on. A later one cuts it short."""
    stop = StopRequest()
    stop.ask()
    stop.ask()
    assert stop.asked
    finished = asyncio.Event()

    async def drain() -> None:
        await asyncio.sleep(0.05)
        finished.set()

    await stop.hurried(drain(), 10)
    assert finished.is_set()

    async def endless() -> None:
        await asyncio.Event().wait()

    async def impatient() -> None:
        await asyncio.sleep(1.1)
        stop.ask()

    async with asyncio.timeout(10):
        await asyncio.gather(stop.hurried(endless(), 3600), impatient())


async def test_a_drain_is_bounded() -> None:
    """Work that does not end is left at its deadline."""
    async with asyncio.timeout(10):
        await StopRequest().hurried(asyncio.Event().wait(), 0.05)
