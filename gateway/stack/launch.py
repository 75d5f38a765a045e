"""Start one child program so that it can neither be orphaned nor doubled.

Floor: stack. Run as a script in a bare interpreter (``python -I -S launch.py … -- program args``), it prepares its own
process and then becomes the program (an absolute path) by ``exec``, so the pid stays the same. It does what
``preexec_fn`` would do, but outside the parent: Python code between fork and exec in a process with threads can
deadlock. It imports nothing of this project and must stay quick to start.

In this order:

1. ``--lock FILE``: takes an advisory lock that the program and everything it forks inherit. The kernel lets go
   of it when the last of them is gone, so "is it still running?" needs no pid file that could be stale.
2. ``--namespace UID`` or ``--user UID:GID``: stops being root (Postgres refuses root).
3. ``--death-signal N --parent PID``: asks the kernel for a signal when the parent dies (Linux). It comes after step 2,
   because a change of credentials clears it.
4. ``--reach FOLDER``: tries whether it can read a folder. Without a program that is all.

Exit status before the exec: 75 the lock is held by another process, 77 a permission is missing, 78 the user
namespace was refused.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys

# Everything is imported above: after step 2 the standard library may be out of reach.

LOCK_HELD = 75
NOT_PERMITTED = 77
NO_NAMESPACE = 78

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_PASSING = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def main(argv: list[str]) -> None:
    """Prepare this process and become the program; never returns."""
    cut = argv.index("--")
    options = dict(zip(argv[:cut:2], argv[1:cut:2], strict=True))
    command = argv[cut + 1 :]
    if "--lock" in options:
        _take_lock(options["--lock"])
    if "--namespace" in options:
        _enter_namespace(int(options["--namespace"]))
    elif "--user" in options:
        _become(*(int(part) for part in options["--user"].split(":")))
    if "--death-signal" in options:
        _die_with_parent(int(options["--death-signal"]), int(options["--parent"]))
    if "--reach" in options:
        _reach(options["--reach"])
    if not command:  # a trial run: may this process do all of the above?
        sys.exit(0)
    try:
        os.execv(command[0], command)  # noqa: S606 (becoming the program is the purpose)
    except OSError as error:
        _give_up(NOT_PERMITTED, f"{command[0]} cannot be started: {error.strerror}.")


def _take_lock(path: str) -> None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _give_up(LOCK_HELD, f"Another process holds {path}.")
    os.ftruncate(lock, 0)
    os.write(lock, b"%d\n" % os.getpid())
    os.set_inheritable(lock, True)


def _enter_namespace(uid: int) -> None:
    """Map this user, and only it, to a number that is not 0; files outside keep their owner."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER) != 0:
        _give_up(NO_NAMESPACE, f"No user namespace: {os.strerror(ctypes.get_errno())}.")
    try:
        # The kernel wants setgroups switched off before an unprivileged gid map.
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {outer_uid} 1"),
            ("gid_map", f"{uid} {outer_gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        _give_up(NO_NAMESPACE, f"No user namespace: {error}.")


def _become(uid: int, gid: int) -> None:
    """Be another user, but keep root's right to pass through folders, where root has it.

    A clone below /root, or a private temporary folder, would be out of that user's reach. The program gains nothing
    by this that it would not have as root.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    wanted = sum(1 << capability for capability in _PASSING)
    # effective, permitted, inheritable; then the same for capabilities from 32 on
    sets = (ctypes.c_uint32 * 6)(wanted, wanted, wanted, 0, 0, 0)
    if libc.capset(header, sets) == 0:
        for capability in _PASSING:
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def _reach(folder: str) -> None:
    try:
        os.listdir(folder)  # access(2) would not count the capabilities
    except OSError as error:
        _give_up(NOT_PERMITTED, f"{folder} cannot be reached: {error.strerror}.")


def _die_with_parent(signal_number: int, parent: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        sys.exit(0)


def _give_up(status: int, sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
