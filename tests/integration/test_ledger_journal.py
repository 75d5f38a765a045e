"""Promises of the worker's journal: real files, real kills, a disk that refuses."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ledger.outbox.journal import Journal, JournalLocked, JournalUnavailable
from ledger.outbox.journal_format import _frame, frame_marks, frame_record

Opener = Callable[..., Awaitable[Journal]]


@pytest.fixture
async def open_journal(tmp_path: Path) -> AsyncIterator[Opener]:
    made: list[Journal] = []

    async def make(**options: object) -> Journal:
        made.append(await Journal.open(tmp_path / "worker 0", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for journal in made:
        await journal.close()


@contextmanager
def small_disk(limit_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond the limit: writes fail as on a full disk, short ones included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def segments(journal: Journal) -> list[Path]:
    return sorted(journal.folder.glob("*.seg"))


async def read_all(journal: Journal) -> dict[int, bytes]:
    """All that is unconfirmed, from the disk, oldest first."""
    found: dict[int, bytes] = {}
    start = 0
    while (piece := await journal.read_back(start)) is not None:
        assert not piece.lost
        found.update(piece.records)
        start = piece.last + 1
    return found


async def crash(journal: Journal) -> None:
    """Let go of the lock as a dead process does, and leave the files as they are."""
    os.close(journal._lock)
    journal._closed = True
    await asyncio.to_thread(journal._disk.shutdown)


async def test_what_was_written_is_there_after_a_crash(open_journal: Opener) -> None:
    """Every record whose write returned comes back in its order, and only those that were not confirmed."""
    journal = await open_journal()
    numbers = await asyncio.gather(*(journal.write(b"%d" % number) for number in range(100)))
    for number in numbers[:40]:
        journal.confirm(number)
    await journal.write(b"last")  # takes the confirmations along
    await crash(journal)
    again = await open_journal()
    assert list((await read_all(again)).values()) == [b"%d" % number for number in range(40, 100)] + [b"last"]
    assert (again.unconfirmed, again.damaged_places, again.torn_tails) == (61, 0, 0)


async def test_records_share_their_syncs(open_journal: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives while the disk is busy is made durable by one sync."""
    syncs = 0
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    journal = await open_journal()
    await asyncio.gather(*(journal.write(b"x" * 300) for _ in range(1000)))
    assert syncs <= 3


async def test_confirmations_survive_a_quiet_end(open_journal: Opener) -> None:
    """Confirmations are written down soon even when nothing follows, so a crash later repeats nothing."""
    journal = await open_journal()
    first, second = await journal.write(b"a"), await journal.write(b"b")
    journal.confirm(first)
    await asyncio.sleep(1.3)
    await crash(journal)
    again = await open_journal()
    assert await read_all(again) == {second: b"b"}


async def test_confirmed_segments_are_deleted(open_journal: Opener) -> None:
    """The journal does not grow: segments go when all in them is confirmed, the last one with a clean end."""
    journal = await open_journal(segment_bytes=2000)
    kept = []
    for turn in range(50):
        numbers = await asyncio.gather(*(journal.write(b"x" * 100) for _ in range(10)))
        kept.append(numbers[0])
        for number in numbers if turn != 25 else numbers[1:]:
            journal.confirm(number)
    await journal.write(b"y")
    assert len(segments(journal)) <= 3
    await journal.close()
    again = await open_journal()
    assert sorted((await read_all(again)).values()) == [b"x" * 100, b"y"]
    for number in list(await read_all(again)):
        again.confirm(number)
    await again.close()
    assert segments(again) == []


async def test_an_old_segment_is_left(open_journal: Opener) -> None:
    """A segment is left after its time too, so that one slow record does not keep days of others alive."""
    journal = await open_journal(segment_age_s=0.05)
    await journal.write(b"a")
    await asyncio.sleep(0.1)
    await journal.write(b"b")
    assert len(segments(journal)) == 2


async def test_one_process_at_a_time(open_journal: Opener) -> None:
    """A journal that is in use can't be opened; one that is let go of can be waited for."""
    journal = await open_journal()
    with pytest.raises(JournalLocked):
        await open_journal()
    waiting = asyncio.create_task(open_journal(wait_s=5))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await journal.close()
    await asyncio.wait_for(waiting, 2)


async def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    """A path that is no folder is a sentence and not a stack trace of the system."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JournalUnavailable, match="can't be used"):
        await Journal.open(tmp_path / "file" / "worker-0")


@pytest.mark.parametrize("extra", [b"", b"\xf5PJ\x01", b"\xf5PJ\x01" + bytes(30), bytes(4096), os.urandom(3000)])
async def test_a_torn_tail_is_left_behind(open_journal: Opener, extra: bytes) -> None:
    """A write that a crash cut short hides no record before it and stops no start; new records go on."""
    journal = await open_journal()
    await asyncio.gather(*(journal.write(b"%d" % number) for number in range(10)))
    await crash(journal)
    with segments(journal)[0].open("r+b") as file:
        file.truncate(segments(journal)[0].stat().st_size - 3)
        file.seek(0, os.SEEK_END)
        file.write(extra)
    again = await open_journal()
    assert list((await read_all(again)).values()) == [b"%d" % number for number in range(9)]
    assert again.torn_tails == 1
    number = await again.write(b"new")
    await crash(again)
    third = await open_journal()
    assert (await read_all(third))[number] == b"new"
    assert third.unconfirmed == 10


async def test_a_flipped_bit_costs_one_record_and_is_kept_for_a_look(open_journal: Opener) -> None:
    """Damage in the middle is counted, costs the record it hit, and its file is kept when its records are done."""
    journal = await open_journal()
    await asyncio.gather(*(journal.write(b"record %03d" % number) for number in range(100)))
    await crash(journal)
    data = bytearray(segments(journal)[0].read_bytes())
    data[data.index(b"record 050") + 3] ^= 16
    segments(journal)[0].write_bytes(data)
    again = await open_journal()
    found = await read_all(again)
    assert list(found.values()) == [b"record %03d" % number for number in range(100) if number != 50]
    assert again.damaged_places == 1
    for number in found:
        again.confirm(number)
    await again.close()
    assert segments(again) == []
    assert len(list((again.folder / "damaged").iterdir())) == 1
    third = await open_journal()
    assert (await read_all(third), third.damaged_places) == ({}, 0)


async def test_a_full_disk_is_told_and_survived(open_journal: Opener) -> None:
    """On a full disk a record is refused, earlier ones stay good, and when there is room the next one is durable."""
    journal = await open_journal()
    await journal.write(b"before")
    size = segments(journal)[0].stat().st_size
    with small_disk(size + 20):  # the next write is cut short in its middle
        with pytest.raises(JournalUnavailable, match="disk refused"):
            await journal.write(b"x" * 100)
        with pytest.raises(JournalUnavailable, match="a moment ago"):
            await journal.write(b"x")
    assert segments(journal)[0].stat().st_size == size
    await asyncio.sleep(0.3)
    await journal.write(b"after")
    assert journal.refusals == 1
    await crash(journal)
    again = await open_journal()
    assert list((await read_all(again)).values()) == [b"before", b"after"]
    assert (again.damaged_places, again.torn_tails) == (0, 0)


async def test_a_group_that_does_not_fit_is_refused_as_a_whole(open_journal: Opener) -> None:
    """When the disk fills up in the middle of a group of many, those and only those that were promised come back."""
    journal = await open_journal()
    promised = {await journal.write(b"before"): b"before"}
    journal.confirm(next(iter(promised)))  # its mark travels with the group that fails
    for room in (0, 10, 150, 1000, 5000):
        size = max((path.stat().st_size for path in segments(journal)), default=0)
        names = [b"%d-%d" % (room, number) + bytes(100) for number in range(30)]
        with small_disk(size + room):
            results = await asyncio.gather(*(journal.write(name) for name in names), return_exceptions=True)
        assert {type(result) for result in results} <= {int, JournalUnavailable}
        assert all(isinstance(result, int) for result in results) == (room == 5000)
        promised |= {r: name for r, name in zip(results, names, strict=True) if isinstance(r, int)}
        journal._refused_until_s = 0.0
        promised[await journal.write(b"behind")] = b"behind"
    await crash(journal)
    again = await open_journal()
    assert await read_all(again) == {number: name for number, name in promised.items() if name != b"before"}
    assert (again.damaged_places, again.torn_tails) == (0, 0)


async def test_confirmations_that_the_disk_refuses_harm_nothing(open_journal: Opener) -> None:
    """Confirmations are written without a promise: on a full disk they are dropped, and the file stays whole."""
    journal = await open_journal()
    numbers = [await journal.write(b"%d" % number) for number in range(10)]
    with small_disk(segments(journal)[0].stat().st_size + 20):
        journal.confirm(numbers[0])
        await asyncio.sleep(1.2)
    await journal.write(b"behind")
    await crash(journal)
    again = await open_journal()
    assert list((await read_all(again)).values())[-10:] == [b"%d" % number for number in range(1, 10)] + [b"behind"]
    assert (again.damaged_places, again.torn_tails) == (0, 0)


async def test_a_disk_that_is_full_from_the_start_leaves_no_litter(open_journal: Opener) -> None:
    """While the disk refuses everything, empty files do not pile up."""
    journal = await open_journal()
    with small_disk(0):
        for _ in range(3):
            with pytest.raises(JournalUnavailable):
                await journal.write(b"x")
            journal._refused_until_s = 0.0
    await journal.write(b"y")
    assert len(segments(journal)) == 1


async def test_a_sync_that_fails_is_a_refusal(open_journal: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed sync nothing of its group is called durable, and its file is not written to again."""
    journal = await open_journal()
    await journal.write(b"before")
    real = os.fdatasync

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(JournalUnavailable, match="Input/output error"):
        await journal.write(b"lost")
    monkeypatch.setattr(os, "fdatasync", real)
    await asyncio.sleep(0.3)
    await journal.write(b"after")
    assert len(segments(journal)) == 2
    await crash(journal)
    again = await open_journal()
    assert list((await read_all(again)).values()) == [b"before", b"after"]


async def test_an_unreadable_segment_stops_no_start(open_journal: Opener) -> None:
    """A segment that the disk does not give back is left where it is, and the others are read."""
    journal = await open_journal(segment_bytes=1)
    await journal.write(b"a")
    await journal.write(b"b")
    await crash(journal)
    first = segments(journal)[0]
    first.unlink()
    first.mkdir()  # reading it is an error, also for root
    again = await open_journal()
    assert list((await read_all(again)).values()) == [b"b"]
    await again.write(b"c")


async def test_too_much_waiting_is_refused(open_journal: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a slow disk is bounded."""
    monkeypatch.setattr("ledger.outbox.journal.MAX_WAITING_BYTES", 10_000)
    journal = await open_journal()
    results = await asyncio.gather(*(journal.write(bytes(1000)) for _ in range(30)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, JournalUnavailable)]
    assert 0 < len(refused) < 30
    assert "too slow" in str(refused[0])
    assert journal.unconfirmed == 30 - len(refused)


async def test_what_did_not_fit_is_read_back(open_journal: Opener) -> None:
    """Unconfirmed records can be read back from the disk at any time."""
    journal = await open_journal(segment_bytes=500)
    numbers = [await journal.write(b"%d" % number) for number in range(60)]
    for number in numbers[::2]:
        journal.confirm(number)
    assert list((await read_all(journal)).values()) == [b"%d" % number for number in range(1, 60, 2)]


WRITER = """
import asyncio, os, sys
from pathlib import Path
from ledger.outbox.journal import Journal

async def main():
    journal = await Journal.open(Path(sys.argv[1]), wait_s=5, segment_bytes=20_000)
    told = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    start = int(sys.argv[3])
    while piece := await journal.read_back(0):
        for number, payload in piece.records.items():
            journal.confirm(number)
            os.write(told, b"c" + payload + b"\\n")

    async def one(name):
        number = await journal.write(b"%d" % name)
        os.write(told, b"w%d\\n" % name)
        if name % 3 == 0:
            os.write(told, b"c%d\\n" % name)
            journal.confirm(number)

    print("ready", flush=True)
    while True:
        await asyncio.gather(*(one(start + step) for step in range(20)))
        start += 20

asyncio.run(main())
"""


async def test_a_writer_killed_at_any_moment_loses_nothing_it_was_promised(tmp_path: Path) -> None:
    """kill -9 at random moments, again and again on one journal: every durable record is found or was confirmed."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    folder, told = tmp_path / "worker-0", tmp_path / "told"
    rounds = 12
    for turn in range(rounds):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(told), str(turn * 1_000_000)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert await asyncio.to_thread(writer.stdout.readline) == b"ready\n"
        await asyncio.sleep(dice.random() * 0.15)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
    lines = told.read_bytes().splitlines()
    written = {line[1:] for line in lines if line[:1] == b"w"}
    confirmed = {line[1:] for line in lines if line[:1] == b"c"}
    journal = await Journal.open(folder)
    found = list((await read_all(journal)).values())
    await journal.close()
    assert len(written) > 200
    assert written <= confirmed | set(found)
    assert len(found) == len(set(found))
    assert journal.damaged_places == 0
    # The last life's records may be there though nobody was told; nothing of an earlier life is delivered again.
    assert {int(name) // 1_000_000 for name in found} <= {rounds - 1, rounds - 2}


async def test_a_file_deleted_while_it_is_written_to_comes_back(open_journal: Opener) -> None:
    """When somebody deletes the file that is written to, the next group brings back all that was in it."""
    journal = await open_journal()
    for number in range(5):
        await journal.write(b"%d" % number)
    segments(journal)[0].unlink()
    await journal.write(b"5")
    await journal.write(b"6")
    await crash(journal)
    again = await open_journal()
    assert list((await read_all(again)).values()) == [b"%d" % number for number in range(7)]
    assert (again.damaged_places, again.torn_tails) == (0, 0)


async def test_a_folder_that_vanished_is_a_refusal(open_journal: Opener, tmp_path: Path) -> None:
    """When the whole folder is taken away, a record is refused and not promised; when it is back, it is used again."""
    journal = await open_journal()
    await journal.write(b"before")
    journal.folder.rename(tmp_path / "elsewhere")
    next((tmp_path / "elsewhere").glob("*.seg")).unlink()
    with pytest.raises(JournalUnavailable, match="No such file"):
        await journal.write(b"lost")
    (tmp_path / "elsewhere").rename(journal.folder)
    await asyncio.sleep(0.3)
    number = await journal.write(b"after")
    piece = await journal.read_back(0)
    assert piece is not None
    assert (piece.records, len(piece.lost)) == ({}, 1)  # "before" went with its file
    assert (await journal.read_back(piece.last + 1)).records == {number: b"after"}  # type: ignore[union-attr]


async def test_what_was_deleted_later_is_said_to_be_lost(open_journal: Opener) -> None:
    """Records whose file was deleted, or damaged, after they were written are named when they are read back."""
    journal = await open_journal(segment_bytes=1)
    numbers = [await journal.write(b"record %d" % number) for number in range(4)]
    first, second, *_ = segments(journal)
    first.unlink()
    second.write_bytes(second.read_bytes().replace(b"record 1", b"recorb 1"))
    found, lost, start = {}, [], 0
    while piece := await journal.read_back(start):
        found.update(piece.records)
        lost += piece.lost
        start = piece.last + 1
    assert lost == numbers[:2]
    assert found == {numbers[2]: b"record 2", numbers[3]: b"record 3"}
    for number in numbers:
        journal.confirm(number)
    await journal.close()
    assert [path.name for path in (journal.folder / "damaged").iterdir()] == [second.name]


async def test_a_disk_that_gives_nothing_back_now_is_said(open_journal: Opener) -> None:
    """A segment that can't be read at the moment is an error that may pass, and not a loss."""
    journal = await open_journal(segment_bytes=1)
    number = await journal.write(b"a")
    await journal.write(b"b")
    first = segments(journal)[0]
    kept = first.read_bytes()
    first.unlink()
    first.mkdir()
    with pytest.raises(JournalUnavailable, match="can't be read"):
        await journal.read_back(0)
    first.rmdir()
    first.write_bytes(kept)
    assert (await read_all(journal))[number] == b"a"


async def test_many_records_wait_at_the_cost_of_bits(open_journal: Opener) -> None:
    """What waits on the disk is not kept in memory: after a restart it is read one segment at a time."""
    journal = await open_journal(segment_bytes=100_000)
    for _ in range(20):
        await asyncio.gather(*(journal.write(bytes(300)) for _ in range(1000)))
    await crash(journal)
    del journal
    gc.collect()
    tracemalloc.start()
    try:
        again = await open_journal(segment_bytes=100_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert again.unconfirmed == 20_000
    assert kept < 20_000 * 10
    assert len(await read_all(again)) == 20_000


async def test_confirmations_are_read_across_segments_and_versions(open_journal: Opener, tmp_path: Path) -> None:
    """What an earlier version left behind, confirmations number by number in a later segment, is understood."""
    folder = tmp_path / "worker 0"
    folder.mkdir()
    (folder / f"{1:020d}.seg").write_bytes(b"".join(frame_record(number, b"%d" % number) for number in range(1, 9)))
    marks = b"C" + b"".join(number.to_bytes(8, "little") for number in (1, 2, 5, 9))
    (folder / f"{9:020d}.seg").write_bytes(frame_record(9, b"9") + _frame(marks) + frame_marks([(7, 7)]))
    journal = await open_journal()
    assert list(await read_all(journal)) == [3, 4, 6, 8]
    assert [path.name for path in segments(journal)] == [f"{1:020d}.seg"]
    assert await journal.write(b"new") == 10
