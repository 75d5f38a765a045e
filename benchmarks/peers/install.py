"""Ways to install a peer: into a folder of its own, at pinned versions, and not again while the pins stay the same."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers.peer import PeerFailed

PINS = Path(__file__).parent / "pins"
INSTALL_S = 900.0


def python_environment(folder: Path, lock: Path) -> Path:
    """An environment with exactly what a lock file names; its interpreter.

    Raises:
        PeerFailed: a package cannot be had, or has another hash.
    """
    environment = folder / "venv"

    def make() -> None:
        _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
        _run(
            [
                *(sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "--quiet"),
                *("--disable-pip-version-check", "install", "--no-input", "--root-user-action=ignore"),
                *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-compile", "-r", str(lock)),
            ]
        )

    once(folder, lock.read_bytes() + sys.version.encode() + str(folder).encode(), make)
    return environment / "bin" / "python"


def pinned_version(lock: Path, package: str) -> str:
    """Which version of a package a lock file names."""
    lines = lock.read_text().splitlines()
    return next(line.partition("==")[2].split()[0] for line in lines if line.startswith(f"{package}=="))


def node_modules(folder: Path, pins: Path) -> Path:
    """The packages of a ``package-lock.json``, without their install scripts; the folder that holds them.

    Raises:
        PeerFailed: there is no npm, a package cannot be had, or has another hash.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise PeerFailed("It needs node and npm, and they are not on the PATH.")
    files = [pins / "package.json", pins / "package-lock.json"]

    def make() -> None:
        for file in files:
            shutil.copy(file, folder)
        _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder)

    once(folder, b"".join(file.read_bytes() for file in files), make)
    return folder / "node_modules"


def debian_package(folder: Path, name: str) -> Path:
    """A Debian package, unpacked and not installed, so that it takes no root; the folder that stands for ``/``.

    apt checks its signature. The version is what Debian has today, since it keeps no older ones.

    Raises:
        PeerFailed: this system has no apt, or apt does not find it.
    """
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise PeerFailed(f"{name} is not on the PATH, and without apt-get it has to be installed by hand.")
    root = folder / "root"

    def make() -> None:
        # Lists of its own: those of the system may be missing, and only root could fetch them.
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "archives" / "partial").mkdir(parents=True)
        own = [
            f"Dir::State::Lists={folder / 'lists'}",
            f"Dir::Cache={folder}",
            f"Dir::Cache::Archives={folder / 'archives'}",
            "Debug::NoLocking=1",
            "APT::Sandbox::User=",
        ]
        options = [part for option in own for part in ("-o", option)]
        try:
            _run([apt, "-q", "download", name], cwd=folder)
        except PeerFailed:
            _run([apt, "-q", *options, "update"], cwd=folder)
            _run([apt, "-q", *options, "download", name], cwd=folder)
        found = sorted(folder.glob(f"{name}_*.deb"))
        if not found:
            raise PeerFailed(f"apt-get brought no package {name}.")
        _run([dpkg, "-x", str(found[-1]), str(root)])
        shutil.rmtree(folder / "lists")

    once(folder, f"{name} {folder}".encode(), make)
    return root


def once(folder: Path, pins: bytes, make: Callable[[], None]) -> None:
    """Call ``make`` in an empty folder, unless it succeeded there with the same pins before."""
    stamp, wanted = folder / "installed", hashlib.sha256(pins).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make()
    stamp.write_text(wanted)


def _run(command: Sequence[str], *, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"{Path(command[0]).name} did not end within {INSTALL_S:.0f} s.") from None
    except OSError as error:
        raise PeerFailed(f"{command[0]} cannot be started: {error.strerror}.") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise PeerFailed(f"{Path(command[0]).name} failed: {said[-1][:300] if said else done.returncode}")
