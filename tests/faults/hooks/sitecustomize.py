"""Loaded by every Python process of the gateway under test (PYTHONPATH): failpoints and an eyewitness.

A failpoint is a file ``kill-<step>`` in the folder ``PARETA_FAULTS``. The first process that comes to that step takes
the file (a rename, so only one can), leaves ``fired-<step>-<pid>`` and dies by SIGKILL; the product has no code for it.
The witness writes one line for each request: what the client calls it, which hold it got, and where.
"""

import os
import signal
import sys
import time

FOLDER = os.environ.get("PARETA_FAULTS", "")
LEASE_S, RENEW_S = 4.0, 1.0
GUARDIAN_STEPS = ("fence", "wipe", "open")
STALLED_S = 1.0


def reach(step: str) -> None:
    """Die here if somebody asked for it."""
    armed = f"{FOLDER}/kill-{step}"
    if not os.path.exists(armed):
        return
    try:
        os.rename(armed, f"{FOLDER}/fired-{step}-{os.getpid()}")
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def stall(step: str) -> None:
    """Stand still here for a moment if somebody asked for it (``stall-<step>``), as a busy machine would."""
    armed = f"{FOLDER}/stall-{step}"
    if os.path.exists(armed):
        os.rename(armed, f"{FOLDER}/stalled-{step}")
        time.sleep(STALLED_S)


def after(owner: object, name: str, step: str, condition=lambda *args: True) -> None:
    """Die right after an async function has returned."""
    inner = getattr(owner, name)

    async def outer(*args, **kwargs):
        answer = await inner(*args, **kwargs)
        if condition(answer):
            reach(step)
        return answer

    setattr(owner, name, outer)


def before(owner: object, name: str, step: str) -> None:
    """Die right before a function is entered."""
    inner = getattr(owner, name)

    def outer(*args, **kwargs):
        reach(step)
        return inner(*args, **kwargs)

    setattr(owner, name, outer)


def hook_worker() -> None:
    import gateway.app  # noqa: F401 - everything a worker consists of
    from backends.openai_http import OpenAIHttpBackend
    from gateway.dataplane import pipeline
    from gateway.dataplane.relay import Relay
    from ledger.counter import CreditCounter, Held
    from ledger.outbox.journal import Journal

    witness = os.open(f"{FOLDER}/witness", os.O_WRONLY)  # a pipe
    admit = pipeline.admit

    async def witnessed(*args, **kwargs):
        exchange = next(a for a in (*args, *kwargs.values()) if hasattr(a, "client_request_id"))
        os.write(witness, f"{exchange.client_request_id} {exchange.request_id} {os.getpid()}\n".encode())
        held = await admit(*args, **kwargs)
        if isinstance(held, Held):
            reach("after-hold")
        return held

    pipeline.admit = witnessed
    after(OpenAIHttpBackend, "open", "upstream-sent")
    after(CreditCounter, "close_holds", "after-settle", lambda closings: len(closings) > 0)
    events = Relay.events
    passed = 0

    def mid_stream(self, data):
        nonlocal passed
        events(self, data)
        passed += 1
        if passed % 7 == 0:
            reach("mid-stream")

    Relay.events = mid_stream
    before(Relay, "finished", "stream-end")
    append = Journal.append

    def journaled(self, payload, written):
        def durable(number, error):
            if error is None:
                reach("after-journal")
            written(number, error)

        append(self, payload, durable)

    Journal.append = journaled


def hook_reconciler() -> None:
    import gateway.stack.reconciler  # noqa: F401 - everything a reconciler consists of
    import ledger.books.terms
    import ledger.counter.door
    import ledger.upkeep.guardian
    import ledger.upkeep.reconcile
    from ledger.books.batches import BatchWriter
    from ledger.upkeep.reconcile import ShardReconciler

    # A paused leader shall be followed within seconds.
    ledger.books.terms.LEASE_S, ledger.books.terms.RENEW_S = LEASE_S, RENEW_S
    if hasattr(ledger.upkeep.reconcile, "RENEW_S"):
        ledger.upkeep.reconcile.RENEW_S = RENEW_S

    after(ledger.counter.door.ShardDoor, "fence", "guardian-fenced")
    after(ledger.upkeep.guardian, "open_epoch", "guardian-renewed")
    after(ledger.counter.door.ShardDoor, "open", "guardian-opened")
    change = ledger.counter.door.ShardDoor._change
    steps = {getattr(ledger.counter.door, f"_{step.upper()}"): step for step in GUARDIAN_STEPS}

    def stalling(self, generation, script, keys, *words):
        stall(f"guardian-{steps[script]}")
        return change(self, generation, script, keys, *words)

    ledger.counter.door.ShardDoor._change = stalling
    before(BatchWriter, "_transaction", "before-copy")
    after(BatchWriter, "_move_checkpoint", "before-commit")
    before(ShardReconciler, "_trim", "before-trim")


if FOLDER:
    words = sys.orig_argv
    # The supervisor starts these; it itself is left alone.
    try:
        if "worker" in words:
            slot = words[words.index("--slot") + 1]
            os.environ["FAKETIME_TIMESTAMP_FILE"] = f"{FOLDER}/clock-worker-{slot}"
            hook_worker()
        elif "reconcile" in words:
            hook_reconciler()
    except Exception as error:
        with open(f"{FOLDER}/broken-hook", "a") as note:
            note.write(f"{' '.join(words)}: {error!r}\n")
