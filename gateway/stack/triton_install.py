"""A Triton server in an environment of its own: found, or installed from a lock whose hashes are checked.

Floor: stack. The wheel `nvidia-pytriton` carries NVIDIA's `tritonserver` with its Python backend, which wants an older
numpy than ours; so it gets its own folder, `.venv-triton` beside the environment this runs in (else in the data
folder). It is built beside its place and renamed when complete: what is there can be used. Only the program is used,
not that wheel's own Python interface. `python -m gateway.stack.triton_install` installs and says what it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.stack.processes import StackError

LOCK_FILE = Path(__file__).parents[2] / "requirements-triton.lock"
DEFAULT_TIMEOUT_S = 300.0
_LAYOUT = 1  # raise it when what is made here changes
_OLDEST_GLIBC = (2, 35)
_VERSIONS = ((3, 12), (3, 11))
"""Of Python: the wheel's stubs go further, the numpy it needs ends here."""

_PROBE = """\
import json, os, struct, sys, sysconfig, venv
name = sysconfig.get_config_var("INSTSONAME") or ""
folder = sysconfig.get_config_var("LIBDIR") or ""
found = [f for f in (folder, os.path.join(sys.base_prefix, "lib")) if os.path.isfile(os.path.join(f, name))]
print(json.dumps({
    "program": sys.executable, "version": list(sys.version_info[:2]), "name": sys.implementation.name,
    "library": found[0] if name.startswith("libpython") and ".so" in name and found else None,
}))
"""


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """An installed server.

    Attributes:
        root: the virtual environment.
        packages: its `site-packages`.
        library: the folder of the `libpython` that the server's Python stub loads.
    """

    root: Path
    packages: Path
    library: Path

    @property
    def program(self) -> Path:
        """The server."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The folder of its backends."""
        return self.packages / "pytriton" / "tritonserver" / "backends"

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Where its shared libraries are."""
        return self.packages / "nvidia_pytriton.libs", self.library


def place_for(data_folder: Path) -> Path:
    """Where the environment belongs: shared by all runs from one checkout, else in the data folder."""
    if sys.prefix != sys.base_prefix and os.access(Path(sys.prefix).parent, os.W_OK):
        return Path(sys.prefix).parent / ".venv-triton"
    return data_folder / "venv-triton"


def why_not_here() -> str | None:
    """Why no Triton server can run on this machine, as a sentence; `None` if one can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"The Triton server is built for Linux on x86_64, and this is {platform.system()} {platform.machine()}."
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""  # "glibc 2.36"; other libraries don't know the name
    except (OSError, ValueError):
        libc = ""
    numbers = tuple(int(part) for part in libc.removeprefix("glibc ").split(".")[:2] if part.isdigit())
    if numbers < _OLDEST_GLIBC:
        return f"The Triton server needs glibc 2.35 or newer, and this machine has {libc or 'another C library'}."
    if not LOCK_FILE.is_file():
        return f"The Triton server is installed from {LOCK_FILE.name}, which only a checkout of the sources has."
    return None


def find_installed(place: Path) -> TritonEnvironment | None:
    """The environment at a place, if it is complete and made from the lock as it is now."""
    try:
        stamp = json.loads((place / "stamp.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if stamp.get("lock") != _fingerprint() or stamp.get("place") != str(place):
        return None
    found = TritonEnvironment(place / "env", place / "env" / stamp["packages"], Path(stamp["library"]))
    return found if found.program.is_file() and (found.root / "bin" / "python").exists() else None


async def install(
    place: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S, say: Callable[[str], None] = lambda text: None
) -> TritonEnvironment:
    """Install it, or find it installed: then nothing is done and no network is needed.

    Raises:
        StackError: it cannot run here, or the installation failed; a sentence.
    """
    if (reason := why_not_here()) is not None:
        raise StackError(reason)
    if (found := find_installed(place)) is not None:
        return found
    _make_folder(place)
    try:
        async with asyncio.timeout(timeout_s):
            with await _alone(place / "lock"):
                return find_installed(place) or await _install(place, say)
    except TimeoutError:
        raise StackError(f"The Triton server could not be installed within {timeout_s:g} s.") from None


async def _install(place: Path, say: Callable[[str], None]) -> TritonEnvironment:
    begun_s = time.monotonic()
    python, library, version = await _find_python()
    say(f"installing a Triton server into {place} (hashes checked, about 60 MB to fetch)")
    new = place / "new"
    shutil.rmtree(new, ignore_errors=True)
    await _run([python, "-m", "venv", "--without-pip", "--symlinks", str(new)])
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(new / "bin/python")]
    flags = ["--no-input", "--root-user-action=ignore", "--no-deps", "--no-compile", "--only-binary=:all:"]
    await _run([*pip, "install", *flags, "--retries=1", "--require-hashes", "-r", str(LOCK_FILE)])
    packages = Path("lib") / f"python{version}" / "site-packages"
    server = new / packages / "pytriton" / "tritonserver"
    # The backend starts the stub that lies beside it; each is built for one version of Python.
    stub = Path("triton_python_backend_stub")
    shutil.copy2(server / "python_backend_stubs" / version / stub, server / "backends" / "python" / stub)
    env = place / "env"
    shutil.rmtree(env, ignore_errors=True)
    new.rename(env)
    stamp = {"lock": _fingerprint(), "place": str(place), "packages": str(packages), "library": str(library)}
    (place / "stamp.json").write_text(json.dumps(stamp) + "\n", "utf-8")
    say(f"the Triton server is installed ({time.monotonic() - begun_s:.0f} s)")
    return TritonEnvironment(env, env / packages, library)


def _make_folder(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"The Triton server cannot be installed into {place}: {error.strerror}.") from error


def _fingerprint() -> str:
    return f"{_LAYOUT} {hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest()}"


async def _find_python() -> tuple[str, Path, str]:
    """A CPython that the stubs were built for: program, folder of its libpython, version.

    Raises:
        StackError: there is none.
    """
    names = [getattr(sys, "_base_executable", sys.executable), "python3.12", "python3.11", "python3"]
    missing_library = False
    for name in names:
        if (program := shutil.which(name)) is None:
            continue
        try:
            told = json.loads(await _run([program, "-c", _PROBE]))
        except (StackError, ValueError):
            continue  # a shim without a Python behind it, or one without venv
        if told["name"] != "cpython" or tuple(told["version"]) not in _VERSIONS:
            continue
        if told["library"] is None:
            missing_library = True
            continue
        return told["program"], Path(told["library"]), ".".join(map(str, told["version"]))
    if missing_library:
        raise StackError(
            "The Triton server needs the shared library of Python, which the one here was built without "
            "(Debian and Ubuntu: apt-get install libpython3-dev)."
        )
    raise StackError("The Triton server needs CPython 3.11 or 3.12 on the PATH, and there is none.")


async def _run(command: Sequence[str]) -> str:
    """Run a command to its end and return what it printed. It ends with us."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        said = errors.decode("utf-8", "replace").strip().splitlines()
        raise StackError(f"The Triton server could not be installed: {said[-1] if said else command[0]}")
    return out.decode("utf-8", "replace")


async def _alone(path: Path) -> contextlib.AbstractContextManager[None]:
    """Wait until nobody else installs to the same place."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            try:
                await asyncio.sleep(0.2)
            except BaseException:
                os.close(file)
                raise
        else:
            return _closing(file)


@contextlib.contextmanager
def _closing(file: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(file)


def main(arguments: Sequence[str]) -> int:
    """Install within the seconds given as the only argument. Never fails: tests without a server say so and skip."""
    timeout_s = float(arguments[0]) if arguments else DEFAULT_TIMEOUT_S

    def say(text: str) -> None:
        print(f"set-up: {text}", file=sys.stderr, flush=True)

    try:
        asyncio.run(install(place_for(Path(".data").absolute()), timeout_s=timeout_s, say=say))
    except StackError as error:
        say(f"no Triton server, its tests are skipped: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
