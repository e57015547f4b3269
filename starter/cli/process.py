"""Commands that are processes of the workers."""

import os
import sys
from typing import NoReturn


def replace_process(module: str, arguments: list[str]) -> NoReturn:
    """Replace this process by the module's own.

    Signals and the exit code are then the worker's, and no code of workers is imported here.
    """
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell wanted
