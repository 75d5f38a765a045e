"""All faults, in the order of the design's list. (24, the mutations, is ``mutations.py``.)"""

from __future__ import annotations

from tests.faults import money_faults, postgres_faults, process_faults, redis_faults
from tests.faults.fault import Fault

FAULTS: list[type[Fault]] = [
    *process_faults.killed_workers(),
    process_faults.KilledWithDebts,
    process_faults.RestartedGateway,
    redis_faults.KilledRedis,
    redis_faults.EmptyRedis,
    redis_faults.CutFile,
    redis_faults.LaggingFollower,
    redis_faults.TwoPrimaries,
    redis_faults.SleepingRedis,
    redis_faults.EatenAnswers,
    redis_faults.LateCommands,
    redis_faults.LateGuardian,
    process_faults.PausedWorker,
    process_faults.PausedReconciler,
    *process_faults.killed_reconcilers(),
    process_faults.KilledGuardian,
    postgres_faults.KilledPostgres,
    postgres_faults.AwayPostgres,
    postgres_faults.SilentPostgres,
    postgres_faults.FullDisk,
    redis_faults.FullDisk,
    process_faults.FullJournal,
    redis_faults.FullMemory,
    redis_faults.JumpingClock,
    money_faults.Crowd,
    money_faults.ThousandSettlements,
    money_faults.HangUps,
    money_faults.SilentEngine,
    money_faults.NewPrices,
    redis_faults.FlushedScripts,
    money_faults.SamePayment,
]


def chosen(numbers: str) -> list[type[Fault]]:
    """The faults with these numbers (``2,10b``; a bare number takes its letters, too); all for an empty text.

    Raises:
        ValueError: there is no such number.
    """
    if not numbers:
        return FAULTS
    found = []
    for number in numbers.split(","):
        matching = [f for f in FAULTS if f.number == number or f.number.rstrip("abcdefg") == number]
        if not matching:
            raise ValueError(f"There is no fault {number}.")
        found += [fault for fault in matching if fault not in found]
    return found
