"""A whole gateway for tests: real Postgres, real Redis, simulators, supervisor, two workers, a reconciler.

Everything runs in processes of its own, started the way an operator starts it (``python -m gateway serve``), on
loopback, and is stopped by pid. Tests make their own organizations, so they never meet each other's money.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from backends.simulator import process as simulator_process
from backends.simulator.process import SimulatorProcess
from gateway.control import endpoints, keys, organizations
from gateway.control.database import new_id, session
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.core.state import EndpointStatus, Limits, Scope
from gateway.settings import Settings
from gateway.stack.environment import environment_of
from gateway.stack.prepare import migrate_all, open_ledger
from gateway.stack.processes import Child, Spec, free_port, lock_holder, tail
from ledger.books.database import Pool, open_pool
from ledger.books.ledger import Ledger
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard
from ledger.counter import AccountState, CreditCounter
from ledger.proof.audit import AuditReport, audit
from tests.services import PostgresService, RedisService, private_folder, remove, run_apart, run_here
from tests.system.wire import REAL_IDS, Answer, ask

USD = 1_000_000_000
MODEL = "sim-8b"
UNICODE_MODEL = "sim-8b-unicode"
SECRET_WORDS = (MODEL, UNICODE_MODEL, "sim-0", "sim-1", "pareta-simulator", "vllm", "127.0.0.1")
"""What must never be seen by a customer: real model ids, names of replicas, internal addresses."""

START_S = 60.0
TOKEN_RATES: Mapping[Meter, int] = {Meter.PROMPT: 150_000_001, Meter.COMPLETION: 600_000_007}
"""Odd on purpose: every charge needs its rounding."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization with an endpoint, a price and a key."""

    org_id: str
    endpoint_id: str
    key: str
    key_id: str
    card: PriceCard | None


@dataclass(slots=True)
class Gateway:
    """A running gateway and the ways to look into it."""

    settings: Settings
    folder: Path
    simulators: list[SimulatorProcess]
    redis: RedisService
    environment: Mapping[str, str] = field(default_factory=dict)
    expected_in_log: dict[str, dict[str, Any]] = field(default_factory=dict)
    _serve: Child | None = None

    # -- processes -------------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.effective_admin_port}"

    @property
    def log(self) -> Path:
        return self.folder / "gateway.log"

    def start(self) -> None:
        """Start the gateway and wait until all workers serve."""
        spec = Spec(
            name="serve",
            command=[sys.executable, "-m", "gateway", "serve"],
            lock=self.folder / "serve.lock",
            environment=environment_of(self.settings) | self.environment,
            log=self.log,
        )
        self._serve = Child(spec)
        give_up_s = time.monotonic() + START_S
        while not all(self.worker_is_ready(slot) for slot in range(self.settings.workers)):
            assert self._serve.running, f"it ended: {tail(self.log, 40)}"
            assert time.monotonic() < give_up_s, f"no start: {tail(self.log, 40)}"
            time.sleep(0.05)

    def stop(self) -> int | None:
        """SIGTERM to the supervisor; returns its exit status."""
        assert self._serve is not None
        return run_here(self._serve.stop(self.settings.drain_timeout_s + 30))

    def begin_stop(self) -> asyncio.Task[int | None]:
        """SIGTERM to the supervisor; its exit status is to be awaited."""
        assert self._serve is not None
        return asyncio.create_task(self._serve.stop(self.settings.drain_timeout_s + 30))

    def worker_is_ready(self, slot: int) -> bool:
        """Whether the worker has said that it serves."""
        return (self.settings.data_path / "run" / f"worker-{slot}.ready").exists()

    def worker_pid(self, slot: int) -> int:
        """The process in a slot; 0 if there is none now."""
        return lock_holder(self.settings.data_path / "run" / f"worker-{slot}.lock") or 0

    async def wait_worker(self, slot: int, *, other_than: int) -> int:
        """Until another process serves in a slot."""
        async with asyncio.timeout(START_S):
            while (pid := self.worker_pid(slot)) in (0, other_than) or not self.worker_is_ready(slot):
                await asyncio.sleep(0.05)
        return pid

    def signal_worker(self, slot: int, number: signal.Signals) -> int:
        """Send a signal to the worker of a slot; returns its pid."""
        pid = self.worker_pid(slot)
        assert pid, f"no worker runs in slot {slot}"
        os.kill(pid, number)
        return pid

    def pause_redis(self) -> None:
        """Redis stops answering, as behind a cut cable."""
        os.kill(self.redis.pid, signal.SIGSTOP)

    def resume_redis(self) -> None:
        """Redis goes on as if nothing had been."""
        os.kill(self.redis.pid, signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Resident memory of all workers."""
        total = 0
        for slot in range(self.settings.workers):
            with contextlib.suppress(FileNotFoundError):
                status = Path(f"/proc/{self.worker_pid(slot)}/statm").read_text()
                total += int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return total

    # -- what a customer has ---------------------------------------------------------------------------------

    async def tenant(
        self,
        *,
        credit_nanos: int = 100 * USD,
        rates: Mapping[Meter, int] | None = None,
        flat_nanos: int | None = None,
        limits: Limits | None = None,
        org_limits: Limits | None = None,
        **endpoint: Any,
    ) -> Tenant:
        """An organization with credit, a priced live endpoint and a full key; ready on every worker."""
        org_id = await self.organization(credit_nanos=credit_nanos, limits=org_limits)
        if flat_nanos is not None:
            rates = {Meter.REQUEST: flat_nanos}
        endpoint_id, card = await self.endpoint(org_id, rates=TOKEN_RATES if rates is None else rates, **endpoint)
        key_id, key = await self.key(org_id, limits=limits)
        if endpoint.get("status", EndpointStatus.LIVE) is EndpointStatus.LIVE:
            await self.wait_visible(endpoint_id, key)
        return Tenant(org_id, endpoint_id, key, key_id, card)

    async def organization(self, *, credit_nanos: int = 0, limits: Limits | None = None) -> str:
        """A new organization, with credit."""
        async with session(self.settings.database_url) as conn:
            made, _ = await organizations.create(conn, f"Test {os.getpid()} {next(_numbers)}", limits)
        async with self.books() as (ledger, _):
            await ledger.open_accounts(made.id)
            if credit_nanos:
                await ledger.top_up(made.id, credit_nanos, f"test-{next(_numbers)}")
        return made.id

    async def top_up(self, org_id: str, amount_nanos: int) -> None:
        """Pay in more."""
        async with self.books() as (ledger, _):
            await ledger.top_up(org_id, amount_nanos, f"test-{next(_numbers)}")

    async def key(
        self, org_id: str, *, scope: Scope = Scope.FULL, limits: Limits | None = None, expires_at: Any = None
    ) -> tuple[str, str]:
        """Mint a key: its id, and the whole of it."""
        async with session(self.settings.database_url) as conn:
            record, token = await keys.mint(conn, org_id, scope=scope, limits=limits, expires_at=expires_at)
        return record.id, token

    async def revoke(self, key_id: str) -> None:
        async with session(self.settings.database_url) as conn:
            await keys.revoke(conn, key_id)

    async def endpoint(
        self,
        org_id: str,
        *,
        rates: Mapping[Meter, int] | None = TOKEN_RATES,
        simulators: list[SimulatorProcess] | None = None,
        model: str = MODEL,
        status: EndpointStatus = EndpointStatus.LIVE,
        context_tokens: int = 8192,
        max_output_tokens: int = 4096,
        deadline_s: float = 600.0,
        alias: str | None = None,
        tolerant: bool = True,
        urls: list[str] | None = None,
        capabilities: tuple[str, ...] = ("chat", "completion", "embedding"),
        model_folder: str | None = None,
    ) -> tuple[str, PriceCard | None]:
        """Register an endpoint; its price comes first, so that no worker sees it without one."""
        endpoint_id = new_id("ep")
        card = await self.price(endpoint_id, rates) if rates is not None else None
        if urls is None:
            urls = [s.url for s in (self.simulators if simulators is None else simulators)]
        new = NewEndpoint(
            org_id=org_id,
            id=endpoint_id,
            alias=alias,
            real_model=model,
            status=status,
            context_tokens=context_tokens,
            max_output_tokens=max_output_tokens,
            deadline_s=deadline_s,
            capabilities=capabilities,
            backends=()
            if status is EndpointStatus.SEED
            else tuple(NewBackend(url, tolerates_unknown_fields=tolerant, model_folder=model_folder) for url in urls),
        )
        async with session(self.settings.database_url) as conn:
            await endpoints.add(conn, new)
        return endpoint_id, card

    async def price(self, endpoint_id: str, rates: Mapping[Meter, int]) -> PriceCard:
        """Set a price from now on."""
        async with self.pool() as pool:
            return await Ledger(pool).set_price(endpoint_id, rates)

    async def drive(self, endpoint_id: str, event: str) -> None:
        """``start``, ``stop`` or ``remove`` an endpoint."""
        async with session(self.settings.database_url) as conn:
            await getattr(endpoints, event)(conn, endpoint_id)

    async def wait_visible(self, endpoint_id: str, key: str, *, status: int = 200) -> None:
        """Until every worker answers for an endpoint. Each fresh connection meets a worker of the kernel's choice."""
        seen = 0
        async with asyncio.timeout(15):
            while seen < 12:
                answer = await self.get(f"/v1/models/{endpoint_id}", key)
                seen = seen + 1 if answer.status == status else 0
                if not seen:
                    await asyncio.sleep(0.02)

    # -- requests --------------------------------------------------------------------------------------------

    async def get(self, path: str, key: str | None) -> Answer:
        """One GET on a connection of its own."""
        return await ask(self.settings.port, "GET", path, key=key)

    async def post(self, path: str, key: str | None, body: Any, **more: Any) -> Answer:
        """One POST on a connection of its own."""
        return await ask(self.settings.port, "POST", path, key=key, body=body, **more)

    async def send(self, method: str, path: str, key: str | None) -> Answer:
        """One request of any method, without a body, on a connection of its own."""
        return await ask(self.settings.port, method, path, key=key)

    async def chat(self, tenant: Tenant, content: str = "Say something.", **fields: Any) -> Answer:
        """A chat completion over a raw socket. ``sim`` reaches the simulator as it is."""
        return await self.post("/v1/chat/completions", tenant.key, chat_body(tenant, content, **fields))

    # -- the simulators --------------------------------------------------------------------------------------

    async def sim(self, number: int, method: str, path: str, body: Any = None) -> Any:
        """Ask a simulator about itself."""
        answer = await ask(self.simulators[number].port, method, path, body=body)
        assert answer.status == 200, answer.raw
        return answer.json

    async def sim_records(self, **wanted: str) -> list[dict[str, Any]]:
        """What the simulators remember of requests whose body has these fields."""
        found: list[dict[str, Any]] = []
        for number, simulator in enumerate(self.simulators):
            if simulator.process.poll() is None:
                records = (await self.sim(number, "GET", "/sim/requests?limit=5000"))["requests"]
                found += [r for r in records if all(r["body"].get(name) == value for name, value in wanted.items())]
        return found

    async def sim_record(self, *, state: str | None = None, **wanted: str) -> dict[str, Any]:
        """The one record of a request, once it is in a state."""
        async with asyncio.timeout(10):
            while True:
                found = await self.sim_records(**wanted)
                assert len(found) <= 1, found
                if found and state in (None, found[0]["state"]):
                    return found[0]
                await asyncio.sleep(0.02)

    async def faults(self, *plans: dict[str, Any]) -> None:
        """Set plans of misbehaviour on all simulators; none clears them."""
        for number, simulator in enumerate(self.simulators):
            if simulator.process.poll() is None:
                await self.sim(number, "DELETE", "/sim/faults")
                if plans:
                    await self.sim(number, "POST", "/sim/faults", list(plans))

    def restart_simulator(self, number: int) -> None:
        """Start a stopped simulator again on its port."""
        port = self.simulators[number].port
        self.simulators[number] = simulator_process.start(*simulator_flags(number), port=port)

    # -- money -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def pool(self) -> AsyncIterator[Pool]:
        pool = await open_pool(self.settings.database_url, size=4, timeout_s=20, application_name="tests")
        try:
            yield pool
        finally:
            await pool.close()

    @asynccontextmanager
    async def books(self) -> AsyncIterator[tuple[Ledger, CreditCounter]]:
        """The ledger and the counter."""
        async with open_ledger(replace(self.settings, postgres_timeout_s=20.0, redis_timeout_s=10.0)) as opened:
            yield opened

    async def account(self, org_id: str) -> AccountState:
        """The account in Redis."""
        async with self.books() as (_, counter):
            return await counter.account(org_id)

    async def balance_nanos(self, org_id: str) -> int:
        """What is left in Postgres."""
        async with self.pool() as pool:
            return (await Ledger(pool).balance(org_id)).total_nanos

    async def receipt(self, request_id: str, *, within_s: float = 15.0) -> Any:
        """The receipt of a request, once it is booked."""
        async with self.pool() as pool:
            return await receipt_of(Ledger(pool), request_id, within_s=within_s)

    async def wait_quiet(self, *, within_s: float = 60.0) -> None:
        """Until no hold is open and every event of Redis is booked in Postgres."""
        async with self.books() as (_, counter), asyncio.timeout(within_s):
            quiet = 0
            while quiet < 3:
                waiting = await counter.open_holds()
                waiting += await self.unbooked(counter)
                waiting += int(await self.metric("pareta_outbox_pending"))
                quiet = 0 if waiting else quiet + 1
                await asyncio.sleep(0.1)

    async def unbooked(self, counter: CreditCounter) -> int:
        """How many events of Redis are not booked."""
        async with self.pool() as pool:
            rows = await pool.fetch("SELECT shard, epoch, seq FROM ledger.reconcile_checkpoint")
        booked = {row["shard"]: (row["epoch"], row["seq"]) for row in rows}
        waiting = 0
        for shard in range(self.settings.shards):
            meta = await counter.meta(shard)
            epoch, seq = booked.get(shard, (0, 0))
            waiting += 0 if meta is None else meta.seq - (seq if epoch == meta.epoch else 0)
        return waiting

    async def metric(self, name: str) -> float:
        """The sum of a metric's series as the admin listener shows them; 0 if there are none."""
        answer = await ask(self.settings.effective_admin_port, "GET", "/metrics")
        lines = answer.body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0].partition("{")[0] == name)

    def cli(self, *arguments: str) -> tuple[int, str]:
        """Run the operator's command beside the stack: exit status and output."""
        run = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            env={**os.environ, **environment_of(self.settings)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        return run.returncode, run.stdout or run.stderr

    async def audit(self) -> AuditReport:
        """Recompute the whole ledger and compare it with Redis; nothing may differ, nothing may be left out."""
        async with self.pool() as pool, self.books() as (_, counter):
            report = await audit(pool, counter)
        assert report.clean, report.differences
        assert report.skipped == []
        return report

    async def audit_by_command(self) -> Any:
        """The same as the operator does it: ``ledger audit`` ends with 0 and lists no difference."""
        code, output = await asyncio.to_thread(self.cli, "ledger", "audit", "--json")
        assert code == 0, output
        shown = json.loads(output)
        assert shown["differences"] == []
        return shown

    # -- the log ---------------------------------------------------------------------------------------------

    def expect_in_log(self, request_id: str, **facts: Any) -> None:
        """Note what the canonical line of a request has to say; looked up once, when the gateway has ended."""
        self.expected_in_log[request_id] = facts

    def log_lines(self) -> dict[str, dict[str, Any]]:
        """The canonical lines until now, by request id."""
        lines = [orjson.loads(line) for line in self.log.read_bytes().splitlines() if line.startswith(b'{"event"')]
        return {line["request_id"]: line for line in lines if line["event"] == "request"}

    def check_log(self) -> None:
        """Every expected line is there, once, and says what was noted; nothing private and no trace stands there."""
        text = self.log.read_bytes()
        # A key's id may stand there; its secret, a prompt or an answer never.
        for secret in (b"pareta_sk_", b"Say something", b"Hello there", b"word word", b"Traceback", *REAL_IDS):
            assert secret not in text, text[max(0, text.index(secret) - 500) :][:2000]
        raw = [line for line in text.splitlines() if line.startswith(b'{"event":"request"')]
        lines = self.log_lines()
        assert len(lines) == len(raw), "a request has one line"
        for request_id, facts in self.expected_in_log.items():
            line = lines.get(request_id)
            assert line is not None, f"{request_id} has no line in the log"
            assert {name: line.get(name) for name in facts} == facts


async def receipt_of(ledger: Ledger, request_id: str, *, within_s: float = 15.0) -> Any:
    """A receipt; waits until the request is booked."""
    async with asyncio.timeout(within_s):
        while (receipt := await ledger.receipt(request_id)) is None:
            await asyncio.sleep(0.05)
    return receipt


def chat_body(tenant: Tenant, content: str = "Say something.", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": tenant.endpoint_id, "messages": [{"role": "user", "content": content}], **fields}


def simulator_flags(number: int) -> list[str]:
    """How the simulators of a stack are started: two models, quick, known replica names."""
    flags = ["--model", MODEL, "--model", UNICODE_MODEL, "--ttft-ms", "2", "--itl-ms", "1", "--tokens", "20"]
    return [*flags, "--replica", f"sim-{number}"]


def gateway_settings(folder: Path, postgres: PostgresService, redis: RedisService, **overrides: Any) -> Settings:
    """Settings for tests: two workers, and patience in tenths of seconds."""
    values: dict[str, Any] = {
        "port": free_port(),
        "admin_port": free_port(),
        "workers": 2,
        "data_dir": str(folder / "data"),
        "database_url": postgres.create_database(),
        "redis_url": redis.url,
        "health_interval_s": 0.2,
        "health_timeout_s": 1.0,
        "stream_heartbeat_s": 0.4,
        "commit_stream_s": 0.3,
        "idle_timeout_s": 3.0,
        "hold_expiry_s": 6.0,
        "hold_heartbeat_s": 0.5,
        "drain_timeout_s": 10.0,
        "engine_linger_s": 2.0,
        "resync_s": 5.0,
    }
    return Settings(**(values | overrides))


@contextmanager
def running_gateway(postgres: PostgresService, *, simulators: int = 2, **overrides: Any) -> Iterator[Gateway]:
    """A whole gateway, gone at the end."""
    folder = private_folder("stack")
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(remove, folder)
        redis = RedisService(private_folder("redis"), durable=False)
        cleanup.callback(remove, redis.server.folder)
        cleanup.callback(redis.stop)
        settings = gateway_settings(folder, postgres, redis, **overrides)
        cleanup.callback(postgres.drop_database, settings.database_url)
        run_apart(migrate_all(settings.database_url))
        run_apart(_open_books(settings))
        gateway = Gateway(settings, folder, [], redis)
        cleanup.callback(_stop_all, gateway)
        gateway.simulators += [simulator_process.start(*simulator_flags(number)) for number in range(simulators)]
        gateway.start()
        yield gateway
        if gateway._serve is not None and gateway._serve.running:
            assert gateway.stop() == 0, tail(gateway.log, 40)
        gateway.check_log()


async def _open_books(settings: Settings) -> None:
    async with open_ledger(settings):
        pass


def _stop_all(gateway: Gateway) -> None:
    if gateway._serve is not None and gateway._serve.running:
        run_here(gateway._serve.kill())
    for simulator in gateway.simulators:
        if simulator.process.poll() is None:
            simulator.stop()
