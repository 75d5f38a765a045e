"""nginx as a reverse proxy: the least that a proxy in front of an engine can do. It knows no keys and no models."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.load import Target
from benchmarks.peers.install import debian_package
from benchmarks.peers.peer import PeerFailed, Place, Running, running_program, start_program
from gateway.stack.processes import free_port

CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    keepalive_timeout 75s;
    keepalive_requests 1000000;
    client_body_buffer_size 64k;
    upstream engine {{
        server {host}:{upstream_port};
        keepalive 1024;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


class Nginx:
    """One worker process, no access log, kept connections on both sides."""

    name = "nginx"
    label = "nginx"
    note = "proxy_buffering off, keepalive on both sides, 1 worker, no access log; checks no key, meters nothing"
    is_slow = False

    def __init__(self) -> None:
        self._program = ""

    def install(self, folder: Path) -> None:
        """The system's, or else Debian's unpacked into ``folder``."""
        found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        self._program = found or str(debian_package(folder, "nginx") / "usr" / "sbin" / "nginx")
        self.version()

    def version(self) -> str:
        """As it says itself.

        Raises:
            PeerFailed: it does not run here; mostly a shared library is missing.
        """
        done = subprocess.run([self._program, "-v"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerFailed(f"nginx does not run: {(done.stderr or done.stdout).strip()[:300]}")
        return done.stderr.strip().rpartition("/")[2]

    def start(self, upstream: str, model: str, place: Place) -> Running:
        """A master and its one worker."""
        port, engine = free_port(), urlsplit(upstream)
        configuration = place.work / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(work=place.work, host=engine.hostname, upstream_port=engine.port, port=port)
        )
        command = [self._program, "-p", str(place.work), "-e", str(place.work / "error.log"), "-c", str(configuration)]
        child = start_program("nginx", command, place)
        return running_program(child, Target(f"http://127.0.0.1:{port}", "none", model), self.version())
