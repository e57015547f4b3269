"""The `perdure` command, and `python -m perdure`."""

import contextlib
import os
import sys
import traceback
from importlib import import_module
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and leave the process, everything said.

    Python's own way out crashes in 5 to 15 of 100 short processes that used Temporal's SDK
    (sdk-python issue 300), whatever their work had come to: hence `os._exit`, on every way out.
    """
    _leave(_run())


def _run() -> int:
    try:
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a character shows "?" in its place.
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


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
