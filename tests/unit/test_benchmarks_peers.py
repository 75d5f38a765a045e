"""Peers side by side: figures and ratios within a round, the floors, what peers are started with, what is left out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.load import Histogram, Measurement, Target
from benchmarks.load.measurement import TIMES, GroupUse
from benchmarks.peers import catalog, litellm, portkey, sglang_router
from benchmarks.peers.catalog import DIRECT, GATEWAY, LITELLM, NGINX, PORTKEY, SGLANG, UNMETERED, all_peers
from benchmarks.peers.figures import ENGINE, PROXY, STACK, Cell, Run, cpu_us, per_core
from benchmarks.peers.floors import FLOORS
from benchmarks.peers.install import PINS, debian_package, once
from benchmarks.peers.nginx import CONFIGURATION
from benchmarks.peers.peer import PeerFailed, pinned, wait_serving
from benchmarks.peers.report import document
from benchmarks.peers.scenarios import BURST, PACED_300, PACED_800, SCENARIOS, SMALL, TTFT, Scenario
from benchmarks.peers.side_by_side import Plan, open_loop_rate
from benchmarks.peers.table import print_run
from benchmarks.peers.unmetered import ForgetfulOutbox, WillingCounter
from benchmarks.processes import Cores
from ledger.counter import CreditCounter
from ledger.outbox import SettlementOutbox
from tests.stack import ROOT, clean_environment

SECONDS = 2.0


def cell(
    peer: str,
    scenario: Scenario,
    *,
    number: int = 0,
    count: int = 1000,
    cpu_s: float | None = 0.5,
    wait_ms: float = 1.0,
    errors: int = 0,
) -> Cell:
    """A measurement in which so much came through for so much CPU."""
    groups = {STACK: GroupUse(0.6, 0, 0, 0), ENGINE: GroupUse(0.2, 0, 0, 0)}
    if cpu_s is not None:
        groups[PROXY] = GroupUse(cpu_s, 0, 1 << 20, 2 << 20)
    times = {name: Histogram([wait_ms / 1e3] * 100) for name in TIMES}
    load = scenario.load(seconds=SECONDS, rate_per_s=100.0)
    measured = Measurement(
        load=load,
        seconds=SECONDS,
        requests=count,
        events=count,
        statuses={200: count},
        errors={"status 500": errors} if errors else {},
        cut=0,
        open_mean=1.0,
        groups=groups,
        generator_shares=(0.3,),
        **times,
    )
    return Cell(peer, scenario, number, measured)


# ------------------------------------------------------------------------------------------------- figures


def test_the_cost_of_a_request_is_the_proxys_own_cpu() -> None:
    """Databases, engine and load generator have a column of their own."""
    one = cell(GATEWAY, SMALL, count=1000, cpu_s=0.5)
    assert one.cpu_us == pytest.approx(500)
    assert one.per_core == pytest.approx(2000)
    assert one.rate_per_s == pytest.approx(500)
    assert one.all_share == pytest.approx(0.3 + 0.1 + 0.3)
    assert one.rss_mib == 2


def test_a_proxy_that_did_nothing_has_no_cost() -> None:
    """Neither is nothing divided by nothing, nor does an idle proxy look infinitely fast."""
    assert cell(LITELLM, PACED_800, count=0, cpu_s=1.4).cpu_us is None
    assert cell(NGINX, SMALL, count=5, cpu_s=0.001).per_core is None
    assert cell(DIRECT, SMALL, cpu_s=None).cpu_us is None


def test_a_ratio_is_taken_within_each_round() -> None:
    """A minute in which the machine is twice as slow changes no ratio."""
    run = Run()
    for number, slowness in enumerate((1.0, 2.0, 1.0)):
        run.cells.append(cell(NGINX, PACED_300, number=number, cpu_s=0.1 * slowness))
        run.cells.append(cell(GATEWAY, PACED_300, number=number, cpu_s=0.13 * slowness))
    ratio = run.ratio(PACED_300.name, cpu_us, GATEWAY, NGINX)
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.3, 1.3, 1.3))
    spread = run.spread(GATEWAY, PACED_300.name, cpu_us)
    assert spread is not None
    assert (spread.low, spread.high) == pytest.approx((130, 260))


def test_a_round_that_one_of_them_lacks_is_left_out_of_their_ratio() -> None:
    """Only what was measured in the same round is compared."""
    run = Run(cells=[cell(GATEWAY, SMALL, number=0), cell(GATEWAY, SMALL, number=1), cell(NGINX, SMALL, number=1)])
    ratio = run.ratio(SMALL.name, per_core, GATEWAY, NGINX)
    assert ratio is not None
    assert ratio.median == pytest.approx(1)
    assert run.ratio(SMALL.name, per_core, GATEWAY, SGLANG) is None


def test_added_latency_is_over_direct() -> None:
    """Of streams the first token counts, of whole answers their end."""
    run = Run(cells=[cell(DIRECT, TTFT, cpu_s=None, wait_ms=1.0), cell(GATEWAY, TTFT, wait_ms=1.4)])
    added = run.added_ms(TTFT.name, GATEWAY, 50)
    assert added is not None
    assert added.median == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(("scenario", "name"), [(SMALL, "latency"), (TTFT, "first_token"), (PACED_300, "inter_token")])
def test_each_scenario_counts_what_its_client_waits_for(scenario: Scenario, name: str) -> None:
    """Of a stream that began long ago the first token says nothing."""
    one = cell(GATEWAY, scenario, wait_ms=1.0)
    getattr(one.measurement, name).add_all([8.0] * 1000)
    assert one.wait_ms(50) == pytest.approx(8000, rel=0.01)


def test_the_rate_of_an_open_loop_is_a_third_of_what_can_be_reached() -> None:
    """Peers that can are asked at the gateway's rate, and slower ones at theirs."""
    run = Run(
        cells=[
            cell(GATEWAY, BURST, cpu_s=0.5),  # 2000 a core
            cell(NGINX, BURST, cpu_s=0.1),
            cell(SGLANG, BURST, cpu_s=1.0),  # 1000 a core
            cell(DIRECT, BURST, cpu_s=None),
            cell(LITELLM, BURST, count=0),
            cell(GATEWAY, BURST, number=1, cpu_s=0.25),
        ]
    )
    assert open_loop_rate(run, 0, GATEWAY) == pytest.approx(600)
    assert open_loop_rate(run, 0, NGINX) == pytest.approx(600)
    assert open_loop_rate(run, 0, DIRECT) == pytest.approx(600)
    assert open_loop_rate(run, 0, SGLANG) == pytest.approx(300)
    assert open_loop_rate(run, 0, LITELLM) == 1
    assert open_loop_rate(run, 1, GATEWAY) == pytest.approx(1200)
    assert open_loop_rate(Run(), 0, NGINX) == 50


# -------------------------------------------------------------------------------------------------- floors


def complete_run(*, gateway_cpu_s: float = 0.1, ttft_ms: float = 1.2) -> Run:
    """A run in which everything was measured once. A thousand units each."""
    cpu = {NGINX: 0.05, GATEWAY: gateway_cpu_s, UNMETERED: 0.065, SGLANG: 1.0, LITELLM: 40.0}
    run = Run()
    for scenario in SCENARIOS:
        run.cells.append(cell(DIRECT, scenario, cpu_s=None))
        count = 100_000 if scenario in (PACED_300, PACED_800) else 1000
        for peer, cpu_s in cpu.items():
            scale = 20 if count > 1000 else 1
            wait_ms = ttft_ms if peer == GATEWAY else 1.1
            run.cells.append(cell(peer, scenario, count=count, cpu_s=cpu_s * scale, wait_ms=wait_ms))
    return run


def judged(run: Run) -> dict[str, bool | None]:
    return {floor.about: floor.judge(run).is_met for floor in FLOORS}


def test_each_floor_of_the_hot_path_is_judged() -> None:
    """Thirteen floors, each with its bound and what came of it, in one sentence."""
    verdicts = judged(complete_run())
    assert len(verdicts) == 13
    missed = {about for about, is_met in verdicts.items() if is_met is False}
    assert missed == {
        "300 paced streams, CPU a chunk over nginx's",
        "300 paced streams, chunks a CPU second",
        "800 paced streams, CPU a chunk over nginx's",
        "800 paced streams, chunks a CPU second",
    }
    assert None not in verdicts.values()


def test_a_missed_floor_says_by_how_much() -> None:
    """The share of the bound that is missing, on either side of it."""
    run = complete_run()
    texts = {floor.about: floor.judge(run).text for floor in FLOORS}
    assert texts["300 paced streams, CPU a chunk over nginx's"].startswith("missed by 33%")
    assert texts["300 paced streams, chunks a CPU second"].startswith("missed by 17%")
    assert "50,000 (50,000 to 50,000)" in texts["300 paced streams, chunks a CPU second"]
    assert texts["small answers, requests a CPU second over nginx"].startswith("met")


def test_a_floor_of_paced_streams_says_how_much_of_them_came() -> None:
    """Chunks that come late come several at once and cost less each, so a starved machine flatters."""
    texts = {floor.about: floor.judge(complete_run()).text for floor in FLOORS}
    of_300 = texts["300 paced streams, CPU a chunk over nginx's"]
    assert of_300.endswith("; of what was due came: gateway 167%, nginx 167%")
    assert texts["800 paced streams, chunks a CPU second"].endswith("came: gateway 62%")
    assert "due" not in texts["small answers, requests a CPU second over nginx"]


@pytest.mark.parametrize(
    ("changed", "about"),
    [
        ({"gateway_cpu_s": 0.3}, "small answers, requests a CPU second over nginx"),
        ({"gateway_cpu_s": 0.5}, "small answers, requests a CPU second over LiteLLM"),
        ({"gateway_cpu_s": 0.7}, "small answers, requests a CPU second over SGLang's router"),
        ({"gateway_cpu_s": 0.15}, "64-token streams at once, requests a CPU second over SGLang's router"),
        ({"gateway_cpu_s": 0.11}, "hold, settlement, journal and event, CPU a small request"),
        ({"ttft_ms": 1.6}, "time to first token at 30 % load over direct, p50"),
        ({"ttft_ms": 4.2}, "time to first token at 30 % load over direct, p99"),
    ],
)
def test_a_floor_is_missed_just_beyond_its_bound(changed: dict[str, float], about: str) -> None:
    """No floor is one that cannot be missed."""
    assert judged(complete_run())[about] is True
    assert judged(complete_run(**changed))[about] is False


def test_a_floor_without_its_peer_is_not_known() -> None:
    """A peer that could not be installed makes no floor met."""
    run = complete_run()
    run.cells = [one for one in run.cells if one.peer != SGLANG]
    run.absent[SGLANG] = "pip failed: no route"
    found = {floor.about: floor.judge(run) for floor in FLOORS}
    verdict = found["64-token streams at once, requests a CPU second over SGLang's router"]
    assert verdict.is_met is None
    assert "without sglang-router" in verdict.text


# -------------------------------------------------------------------------------------------------- tables


def shown(run: Run) -> str:
    out = StringIO()
    print_run(Console(file=out, width=200), run, all_peers(), SCENARIOS, {NGINX: "1.22.1"})
    return out.getvalue()


def test_no_peer_is_left_out_of_the_tables() -> None:
    """One that is missing has its row and its reason, one that fails its errors, and one that beats us its figures."""
    run = complete_run()
    run.absent[PORTKEY] = "It needs node and npm."
    run.cells.append(cell(NGINX, SMALL, number=1, errors=7))
    text = shown(run)
    for peer in all_peers():
        assert text.count(f"│ {peer.label} ") == len(SCENARIOS), peer.label
    assert "Portkey is missing: It needs node and npm." in text
    assert "Bifrost is missing" in text
    assert re.search(r"│ nginx .*│ +7 │", text)
    assert "nginx 1.22.1: proxy_buffering off" in text
    assert "missed by" in text


def test_results_say_where_they_come_from() -> None:
    """Machine, commit, settings, versions and every measurement are in the file, as plain values."""
    run = complete_run()
    run.absent[PORTKEY] = "It needs node and npm."
    plan = Plan(all_peers(), SCENARIOS)
    content = json.loads(json.dumps(document(run, plan, Cores((0,), (1,)), {NGINX: "1.22.1"})))
    assert {"commit", "machine", "cores", "settings", "floors", "made_at"} <= content.keys()
    assert len(content["measurements"]) == len(run.cells)
    assert {peer["name"]: peer["absent_because"] for peer in content["peers"]}[PORTKEY] == "It needs node and npm."
    assert [floor["is_met"] for floor in content["floors"]] == [floor.judge(run).is_met for floor in FLOORS]


# ------------------------------------------------------------------------------------- what peers start with


def test_nginx_relays_without_buffering_on_kept_connections(tmp_path: Path) -> None:
    """The configuration is the one that the tables claim; nginx itself accepts it, where it is installed."""
    text = CONFIGURATION.format(work=tmp_path, host="127.0.0.1", upstream_port=9, port=8)
    for line in ("proxy_buffering off;", "worker_processes 1;", "access_log off;", "proxy_http_version 1.1;"):
        assert line in text
    assert re.search(r"upstream engine \{\s+server 127\.0\.0\.1:9;\s+keepalive \d+;", text)
    assert text.count("{") == text.count("}")
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is not None:
        file = tmp_path / "nginx.conf"
        file.write_text(text)
        command = [program, "-t", "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_litellm_is_never_a_version_that_steals() -> None:
    """Versions 1.82.7 and 1.82.8 carried a credential stealer."""
    assert litellm.version() not in litellm.STOLEN
    assert "1.82.7" not in (PINS / "litellm.txt").read_text()
    assert "1.82.8" not in (PINS / "litellm.txt").read_text()


@pytest.mark.parametrize("lock", ["litellm.txt", "sglang-router.txt"])
def test_every_pinned_package_has_its_hashes(lock: str) -> None:
    """What is installed next year is what is installed now, or nothing."""
    blocks = re.split(r"\n(?=\S)", (PINS / lock).read_text().strip())
    assert len(blocks) > 10
    for block in blocks:
        assert re.match(r"[a-z0-9][a-z0-9._\[\],-]*==\S+ ", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]


def test_every_npm_package_has_its_integrity() -> None:
    """The lock file fits what is asked for, and names a digest for each package."""
    lock = json.loads((PINS / "portkey" / "package-lock.json").read_text())
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert packages[f"node_modules/{portkey.PACKAGE}"]["version"] == portkey.version()
    assert all(one["integrity"].startswith("sha512-") for one in packages.values())


def test_peers_are_pointed_at_the_engine() -> None:
    """Each in its own words, and nothing in front of it that a benchmark would measure instead."""
    engine = "http://127.0.0.1:9000"
    behind = litellm.configuration_of(engine, "mock", "sk-1")
    assert behind["model_list"] == [
        {
            "model_name": "mock",
            "litellm_params": {"model": "openai/mock", "api_base": f"{engine}/v1", "api_key": "none"},
        }
    ]
    assert litellm.ENVIRONMENT["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert portkey.headers_for(engine) == {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"{engine}/v1",
    }
    command = sglang_router.SglangRouter().command(engine, 1, 2)
    assert command[command.index("--worker-urls") + 1] == engine
    assert {"--disable-health-check", "--disable-retries", "--disable-circuit-breaker"} <= set(command)


def test_all_of_the_issues_peers_are_in_the_catalog() -> None:
    """In the order of the tables; those that cannot be run have a reason."""
    assert [peer.name for peer in all_peers()] == [DIRECT, NGINX, GATEWAY, UNMETERED, SGLANG, PORTKEY, LITELLM]
    assert all(reason.endswith(".") for reason in catalog.LEFT_OUT.values())


# ------------------------------------------------------------------------------------- installing, starting


def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    """Until its pins change; a failure half-way leaves nothing that would count as installed."""
    folder, made = tmp_path / "peer", []

    def make() -> None:
        assert not list(folder.iterdir()), "it begins empty"
        (folder / "file").write_text("x")
        made.append(1)

    def fail() -> None:
        (folder / "half").write_text("x")
        raise PeerFailed("no network")

    with pytest.raises(PeerFailed):
        once(folder, b"1", fail)
    once(folder, b"1", make)
    once(folder, b"1", make)
    assert len(made) == 1
    once(folder, b"2", make)
    assert len(made) == 2


def test_a_system_without_apt_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is missing ends the run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerFailed, match="has to be installed by hand"):
        debian_package(tmp_path / "nginx", "nginx")


def test_what_is_started_on_a_core_stays_there() -> None:
    """Children inherit the core; this process has all of its own again afterwards."""
    before = os.sched_getaffinity(0)
    core = max(before)
    with pinned((core,)):
        said = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], capture_output=True, text=True
        )
    assert said.stdout.strip() == str({core})
    assert os.sched_getaffinity(0) == before


class OnlyWhole(BaseHTTPRequestHandler):
    """Answers whole, and breaks on a stream, as one of the peers does."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = b'{"status":"failure"}' if asked["stream"] else b'{"choices":[]}'
        self.send_response(500 if asked["stream"] else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def only_whole() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), OnlyWhole)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_peer_whose_streams_fail_is_measured_without_them(only_whole: str) -> None:
    """It says why, and is not left out of what it can do."""
    said = wait_serving(Target(only_whole, "none", "mock"), lambda: True)
    assert said == 'It answers whole, but no stream: status 500, {"status":"failure"}.'


def test_a_peer_that_ends_is_not_waited_for() -> None:
    """The reason is said at once."""
    with pytest.raises(PeerFailed, match="ended before it served"):
        wait_serving(Target("http://127.0.0.1:1", "none", "mock"), lambda: False)


def test_a_peer_that_never_serves_is_given_up() -> None:
    """After a bounded time, with what the last attempt got."""
    with pytest.raises(PeerFailed, match="ConnectionRefusedError"):
        wait_serving(Target("http://127.0.0.1:1", "none", "mock"), lambda: True, within_s=0.2)


# ------------------------------------------------------------------------------------- the price of money


def test_no_part_of_the_gateway_knows_of_the_worker_that_meters_nothing() -> None:
    """No setting, no command and no import leads there."""
    for package in ("gateway", "ledger", "backends"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            assert not re.search(r"peers\W+unmetered|WillingCounter|ForgetfulOutbox", text), file
            assert not re.search(r"^\s*(from|import) benchmarks", text, re.MULTILINE), file


def test_a_worker_that_meters_nothing_serves_nobody_else() -> None:
    """It refuses every address but loopback."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.unmetered"],
        cwd=ROOT,
        env=clean_environment(HOST="0.0.0.0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "loopback only" in done.stderr


def test_what_meters_nothing_stands_in_for_what_meters() -> None:
    """Whatever it overrides is there in the real ones, so that none of it is dead."""
    for double, real in ((WillingCounter, CreditCounter), (ForgetfulOutbox, SettlementOutbox)):
        for name in vars(double):
            if not name.startswith("__"):
                assert hasattr(real, name), f"{double.__name__}.{name}"
