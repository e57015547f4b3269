"""Run of the suite: each check alone, with its result in words."""

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Literal

from perdure.errors import DefinitionError, ModelError
from perdure.model import Model, ModelConfig

from .checks import PROTOCOL, WIRE, Check
from .probe import NoShape, Probe, Violation
from .server import playing_server
from .shapes import Shapes


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one check."""

    name: str
    rule: str
    """What an adapter must do, in a sentence."""
    state: Literal["ok", "failed", "skipped"]
    words: str = ""
    """Of a failed check: what the adapter does otherwise, and what to do."""


async def check_model(
    make: Callable[[str], Model], shapes: Shapes | None, *, name: str = "", only: Collection[str] = ()
) -> AsyncIterator[Result]:
    """Run the suite against a model, and yield each result.

    Args:
        make: makes the model, given the address of a server; called once.
        shapes: recorded answers of the dialect that the model speaks; None: the checks of the protocol alone, which
            call the model itself.
        name: name of a model, as an agent has it; that of the shapes if empty.
        only: names of the checks to run; all if empty.

    """
    checks = PROTOCOL if shapes is None else PROTOCOL | WIRE
    config = ModelConfig(name=name or (shapes.model if shapes else "own:model"))
    async with playing_server() as server:
        model = make(server.url)
        wire = server if shapes else None
        try:
            for title, check in checks.items():
                if not only or title in only:
                    yield await _run(
                        title, check, Probe(model=model, config=config, server=wire, shapes=shapes)
                    )
        finally:
            await _close(model)


async def _run(title: str, check: Check, probe: Probe) -> Result:
    rule = " ".join((check.__doc__ or "").split())
    try:
        await check(probe)
    except NoShape:
        return Result(name=title, rule=rule, state="skipped", words="the dialect has no such answer")
    except Violation as violation:
        return Result(name=title, rule=rule, state="failed", words=str(violation))
    except (DefinitionError, ModelError) as error:
        return Result(name=title, rule=rule, state="failed", words=f"{type(error).__name__}: {error}")
    except Exception as error:
        words = f"{type(error).__name__}: {error}; raise DefinitionError or ModelError"
        return Result(name=title, rule=rule, state="failed", words=words)
    return Result(name=title, rule=rule, state="ok", words="; ".join(probe.notes))


async def _close(model: Any) -> None:
    close = getattr(model, "aclose", None)
    if close is not None:
        closing = close()
        if isawaitable(closing):
            await closing
