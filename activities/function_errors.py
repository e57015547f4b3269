"""Log of errors in users' functions: tools, hooks, functions of graphs. One record for each attempt."""

import logging
import traceback
from types import TracebackType

from temporalio import activity

from .content.redact import redact, redact_error

_NOT_THEIRS = ("perdure", "temporalio", "asyncio", "concurrent", "threading", "contextvars")
"""Packages whose frames lead to a user's function."""


def log_function_error(
    error: BaseException, what: str, *, call_id: str | None = None, level: int = logging.WARNING
) -> None:
    """Log what a user's function raised, with the traceback of their own code and the run's id.

    The record has the exception itself, for error reporters. One in whose text a secret stands is logged as masked
    text alone: the log of a user's own process masks nothing.

    Args:
        error: the exception.
        what: the function, such as "tool 'price_of' of agent 'clerk'".
        call_id: the tool call, if it is one.
        level: the record's level.

    """
    if not activity.in_activity():
        return
    info = activity.info()
    where = f"run {info.workflow_id}" + (f", call {call_id}" if call_id else "") + f", attempt {info.attempt}"
    frames = _own_frames(error.__traceback__)
    lines = traceback.format_exception(type(error), error, frames)
    text = "".join(lines)
    words = f"{what} failed ({where}): {type(error).__name__}: {redact_error(error, 500)}"
    if redact(text) == text:
        activity.logger.log(level, words, exc_info=(type(error), error, frames))
    else:
        activity.logger.log(level, "%s\n%s", words, redact(text))


def _own_frames(frames: TracebackType | None) -> TracebackType | None:
    """Return the frames from the user's first one on; None if it has none."""
    while frames is not None and _package(frames) in _NOT_THEIRS:
        frames = frames.tb_next
    return frames


def _package(frames: TracebackType) -> str:
    return str(frames.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
