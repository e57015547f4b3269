"""Entry point of the `perdure` command and of `python -m perdure`."""

import contextlib
import os
import sys
import traceback
from importlib import import_module
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    # Python's own exit crashes in 5 to 15 of 100 short processes that used Temporal's SDK (sdk-python issue
    # 300), whatever the command returned. So every exit goes through `os._exit`.
    _exit_now(_run())


def _run() -> int:
    try:
        for stream in (sys.stdout, sys.stderr):
            # A terminal whose encoding lacks a character shows "?" in its place instead of an error.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        code: int = import_module("perdure.starter.cli.app").run()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return code


def _exit_now(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
