"""A catalogue's files on disk.

Floor: control.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from gateway.control.catalog.reading import CatalogInvalid

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_FILES = 50_000


def shipped() -> Path:
    """The demonstration catalogue that comes with the gateway."""
    with resources.as_file(resources.files("gateway") / "catalog") as folder:
        return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """The JSON files of a catalogue, by their paths below its folder.

    Raises:
        CatalogInvalid: the folder can't be read, or a file is too large.
    """
    problems: list[str] = []
    files: dict[str, bytes] = {}
    try:
        for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*/*.json")):
            name = path.relative_to(folder).as_posix()
            if path.stat().st_size > MAX_FILE_BYTES or len(files) >= MAX_FILES:
                problems.append(f"{name} is too large, or there are too many files.")
                continue
            files[name] = path.read_bytes()
    except OSError as error:
        problems.append(f"{folder} cannot be read: {error.strerror}.")
    if problems:
        raise CatalogInvalid(problems)
    return files
