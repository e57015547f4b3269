"""Agent files, looked into by a process of its own."""

import subprocess
import sys


def load_in_process(*arguments: str) -> bytes | int:
    """Return what the loader prints last, or its exit code when it failed and has said why.

    In another process: whatever the file does when it is imported, it does not do to the command line.
    """
    command = [sys.executable, "-m", "perdure.workers.load", *arguments]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603 - our own module
    # The last line only: the file may print when it is imported.
    return process.returncode or process.stdout.splitlines()[-1]
