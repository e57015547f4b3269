"""Check of a provider of your own: `python -m perdure.providers.check my_module:MyModel --dialect openai`.

MyModel is a class, or a function, that makes the model: it is given the address of a server on this machine as its
`base_url` (or `url`, `endpoint`, `endpoint_url`), and "key" as its `api_key`. Or it is a model: then only the protocol
is checked, and the model itself is called.

Exit codes: 0, all checks hold; 1, some do not; 2, they could not be run.
"""

import argparse
import asyncio
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from perdure.model import Model

from .conformance import Result, Shapes, check_model, load_shapes, shipped_dialects
from .conformance.checks import PROTOCOL, WIRE

_ADDRESSES: Final = ("base_url", "url", "endpoint", "endpoint_url")


class _Unusable(Exception):
    """The checks cannot be run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        shapes = load_shapes(options.dialect) if options.dialect else None
        found = _load(options.model)
        if shapes is None and not _is_model(found):
            shapes = _declared_shapes(found)
        unknown = sorted(set(options.only) - set(PROTOCOL | WIRE))
        if unknown:
            raise _Unusable(f"no check {unknown[0]!r}; there are: {', '.join(PROTOCOL | WIRE)}")
        if shapes is not None and _is_model(found):
            raise _Unusable(
                f"{options.model} is a model; to check a dialect, name a class or function that makes one"
            )
        if shapes is None and not _is_model(found):
            known = ", ".join(shipped_dialects())
            raise _Unusable(
                f"{options.model} makes models: say which dialect they speak, --dialect {{{known}}} or a JSON file; "
                "or name a model, to check the protocol alone"
            )
        return asyncio.run(_check(_maker(found), shapes, options))
    except (_Unusable, ValueError) as error:
        sys.stderr.write(f"perdure.providers.check: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m perdure.providers.check", description="Check a provider of your own."
    )
    parser.add_argument("model", metavar="MODULE:NAME", help="class, function or model to check")
    dialects = ", ".join(shipped_dialects())
    parser.add_argument(
        "--dialect",
        default="",
        help=f"wire format that it speaks: {dialects}, or a JSON file of recorded answers",
    )
    parser.add_argument("--name", default="", help="name of a model, as an agent has it")
    parser.add_argument("--only", nargs="*", default=[], metavar="CHECK", help="checks to run, by name")
    return parser


def _load(path: str) -> Any:
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise _Unusable(f"write MODULE:NAME, such as my_module:MyModel, not {path!r}")
    # As `python -m` finds modules, also where this is called as a function.
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise _Unusable(f"cannot import {path}: {error}") from None
    finally:
        sys.path.pop(0)
    return found


def _is_model(found: Any) -> bool:
    # A class has the methods too.
    return not inspect.isclass(found) and isinstance(found, Model)


def _declared_shapes(found: Any) -> Shapes | None:
    """Return the shapes of the dialect that a class names as its `dialect`."""
    declared = getattr(found, "dialect", None)
    return load_shapes(declared) if isinstance(declared, str) else None


def _maker(found: Any) -> Callable[[str], Model]:
    if _is_model(found):
        return lambda _: found
    if not callable(found):
        raise _Unusable(f"{found!r} is no model, and makes none: it has no `stream` and `check`")
    parameters = inspect.signature(found).parameters
    named = next((name for name in _ADDRESSES if name in parameters), None)

    def make(url: str) -> Model:
        key = {"api_key": "key"} if "api_key" in parameters else {}
        try:
            model = found(**{named: url}, **key) if named else found(url, **key)
        except TypeError as error:
            raise _Unusable(f"{found!r} cannot be called with an address: {error}") from None
        if not isinstance(model, Model):
            raise _Unusable(f"{found!r} made a {type(model).__name__}, which has no `stream` and `check`")
        return model

    return make


async def _check(make: Callable[[str], Model], shapes: Shapes | None, options: argparse.Namespace) -> int:
    states: list[str] = []
    async for result in check_model(make, shapes, name=options.name, only=options.only):
        sys.stdout.write(_line(result))
        sys.stdout.flush()
        states.append(result.state)
    failed, skipped = states.count("failed"), states.count("skipped")
    rest = f", {skipped} skipped" if skipped else ""
    sys.stdout.write(f"{len(states) - failed - skipped} of {len(states)} checks hold{rest}\n")
    return 1 if failed else 0


def _line(result: Result) -> str:
    match result.state:
        case "ok":
            return f"ok      {result.name}" + (f": {result.words}\n" if result.words else "\n")
        case "skipped":
            return f"--      {result.name}: {result.words}\n"
        case "failed":
            return f"FAILED  {result.name}: {result.words}\n        {result.rule}\n"


if __name__ == "__main__":
    sys.exit(main())
