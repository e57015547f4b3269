"""Guard of an MCP server's process: `python guard.py PARENT COMMAND...`. Standard library only.

The server inherits stdin, stdout and stderr, and stands in the guard's process group. When the server ends, or when
the worker (PARENT) is gone, however it ended, the guard ends the whole group. So no process of a server outlives its
worker, also not after `kill -9`.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from typing import Final

_GRACE: Final = 2.0
"""Seconds between asking the group to end and killing it."""
_POLL: Final = 0.2
"""Seconds between two looks, where the system has no handles of processes."""
_SET_DEATH_SIGNAL: Final = 1


def main() -> int:
    """Run the command until it ends or the parent is gone; return its exit code."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # The worker asks the whole group to end. The guard stays until the server has, to kill what does not.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(command, preexec_fn=_prepare_child)  # noqa: PLW1509, S603
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"{command[0]!r} does not start: {error}\n")
        return 127
    _release_streams()
    _wait(child, parent)
    _end_group(child)
    return child.returncode or 0


def _prepare_child() -> None:
    # Ignored signals stay ignored in a new program.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        # Should somebody kill the guard itself, the server ends too.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _release_streams() -> None:
    """Let go of stdin and stdout, so that their end shows as soon as the server closes them."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _wait(child: "subprocess.Popen[bytes]", parent: int) -> None:
    """Return when the child has ended, or the parent is gone."""
    handles: list[int] = []
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            handles = [os.pidfd_open(parent), os.pidfd_open(child.pid)]
    while child.poll() is None and os.getppid() == parent:
        if handles:
            select.select(handles, [], [], 5.0)
        else:
            time.sleep(_POLL)


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    """Ask what is left of the group to end, and kill it; the guard, as its leader, ends with it."""
    if child.poll() is None:
        _signal_group(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE)
    _signal_group(signal.SIGKILL)


def _signal_group(number: int) -> None:
    # Only a group of its own: started by hand, the guard would end the shell's.
    if os.getpgrp() == os.getpid():
        with contextlib.suppress(OSError):
            os.killpg(os.getpgrp(), number)


if __name__ == "__main__":
    sys.exit(main())
