"""Errors, by whose move it is next.

PerdureError
+-- DefinitionError         an agent, tool or setting is ill-formed: change the code
+-- InvalidRequest          a call to us is wrong: change the call
|   +-- UnknownAgent
|   +-- RunConflict
+-- NotReachable            the Temporal server or a worker does not answer
+-- RunNotFound
+-- RunEnded                the run is over: nothing more can be said to it
+-- RunFailed               the run ended in an error; `.kind` says which
+-- ModelError              what a provider's answer means, classified once, at the edge
+-- ToolError
+-- RetryableToolError  raised by a tool: try me again
+-- FatalToolError      raised by a tool: no retry helps; the model is told
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from perdure.messages import Usage
    from perdure.wire.results import RunResult

ErrorKind = Literal[
    "rate_limited",
    "overloaded",
    "timeout",
    "connection",
    "stream_cut",
    "malformed_reply",
    "context_overflow",
    "authentication",
    "payment",
    "not_found",
    "bad_request",
    "circuit_open",
    "throttled",
    "too_large",
    "storage",
    "bug",
    "refused",
    "invalid_arguments",
    "not_allowed",
    "tool_error",
    "tool_timeout",
]
"""What can go wrong in a run, whoever's fault it is. What is classified, and where: see `RULES`."""

Place = Literal["model", "tool", "run"]


class Rule(NamedTuple):
    """What becomes of an error of one kind."""

    place: Place
    """Where it enters: with a model call, with a tool call, or anywhere in a run."""
    meaning: str
    retried: bool = False
    """Temporal tries the same call again, after the provider's own delay if it named one."""
    falls_back: bool = False
    """The next model of the chain, or the tool's stand-in, is tried when this one has given up."""
    parks: bool = False
    """With `on_failure="park"` the run waits where it is."""
    transient: bool = False
    """Time may mend it: a parked run tries again by itself. Else it waits for a person to `resume` it."""
    counts_for_circuit: bool = False
    """It counts against the circuit of the model, or of the tool."""
    blocked_locally: bool = False
    """The worker itself held the call, and says until when: nobody was asked, and nothing learnt."""
    counts: str = "nothing"
    """What it uses up."""
    model_sees: str = "nothing"
    person_sees: str = "the run failed, with this kind"


_ATTEMPTS = "one of the call's 6 attempts"
_TOOL_ATTEMPTS = "one of the tool's attempts (`ToolRetry`)"
_WAITS = "the run is parked, and when it tries again"
_MEND = "the run is parked until it is resumed"
_ERROR_RESULT = "the error, as the result of its call"
_NOT_ASKED = "of a model's call nothing: it was not asked; of a tool's, a tool call"
_TOOL_NOT_ASKED = "of a tool: that it was not asked, and why, unless another stands in"
_IN_TRANSCRIPT = "the failed call, in the transcript"


def _passing(meaning: str) -> Rule:
    """Trouble at the provider that may be over in a moment, or in an hour."""
    return Rule(
        "model",
        meaning,
        retried=True,
        falls_back=True,
        parks=True,
        transient=True,
        counts_for_circuit=True,
        counts=_ATTEMPTS,
        person_sees=_WAITS,
    )


def _mended(meaning: str, place: Place = "model") -> Rule:
    """Trouble that a person has to mend."""
    return Rule(place, meaning, falls_back=place == "model", parks=True, person_sees=_MEND)


RULES: dict[ErrorKind, Rule] = {
    "rate_limited": _passing("the provider asks us to slow down"),
    "overloaded": _passing("the provider cannot take the call now"),
    "timeout": _passing("no answer in time"),
    "connection": _passing("the provider was not reached, or hung up"),
    "stream_cut": _passing("the answer stopped before its end"),
    "malformed_reply": _passing("the answer cannot be read")._replace(transient=False, person_sees=_MEND),
    "circuit_open": _passing("the model, or tool, failed so often that nobody asks it for a while")._replace(
        retried=False,
        counts_for_circuit=False,
        blocked_locally=True,
        counts=_NOT_ASKED,
        model_sees=_TOOL_NOT_ASKED,
    ),
    "throttled": _passing("our own rate limit has no room for the call within 20 seconds")._replace(
        retried=False,
        counts_for_circuit=False,
        falls_back=False,
        counts=_NOT_ASKED,
        model_sees=_TOOL_NOT_ASKED,
    ),
    "context_overflow": Rule(
        "model",
        "the conversation does not fit the model",
        counts="nothing: the step is made again",
        model_sees="its window, cut by half",
        person_sees="the run ended with `context_overflow`, when no cut helped",
    ),
    "authentication": _mended("the key is missing, wrong, or not allowed"),
    "payment": _mended("a bill, quota or spend limit is in the way"),
    "not_found": _mended("the provider knows no such model"),
    "bad_request": Rule("model", "the provider refuses the request as wrong", falls_back=True),
    "refused": Rule(
        "model",
        "the model, or a guardrail, declines to answer",
        counts="a step",
        person_sees="the run ended with `refusal` or `guardrail`, and what was said",
    ),
    "invalid_arguments": Rule(
        "tool",
        "the model's arguments do not fit the tool, or its output not the type asked for",
        counts="a tool call; an output one of `output_repairs`; five such steps in a row end the run",
        model_sees="what does not fit",
        person_sees=_IN_TRANSCRIPT,
    ),
    "not_allowed": Rule(
        "tool",
        "policy, limit or person refuses the call",
        counts="a tool call",
        model_sees="who refused it, and why",
        person_sees=_IN_TRANSCRIPT,
    ),
    "tool_error": Rule(
        "tool",
        "the tool failed; again only for a lost connection, a timeout, `RetryableToolError`",
        retried=True,
        falls_back=True,
        counts_for_circuit=True,
        counts=_TOOL_ATTEMPTS,
        model_sees=_ERROR_RESULT,
        person_sees=_IN_TRANSCRIPT,
    ),
    "tool_timeout": Rule(
        "tool",
        "the tool did not answer in time, or its worker died",
        retried=True,
        falls_back=True,
        counts_for_circuit=True,
        counts=_TOOL_ATTEMPTS,
        model_sees="the error; of a write, that it may or may not have taken effect",
        person_sees=_IN_TRANSCRIPT,
    ),
    "too_large": Rule("run", "something exceeds a size limit"),
    "storage": _mended("the blob store takes nothing: a full disk, a missing right", "run"),
    "bug": Rule("run", "something we did not foresee"),
}
assert set(RULES) == set(get_args(ErrorKind))


def rule_for(kind: str) -> Rule:
    """The rule of that kind; a kind we do not know is a bug of ours."""
    return next((rule for known, rule in RULES.items() if known == kind), RULES["bug"])


_HEAD = """\
# What can go wrong, and what becomes of it

<!-- Written by `python -m perdure.errors`: do not edit it. -->

Each error is classified once, where it enters.

- *Again*: Temporal tries the same call again, after the delay that the provider named, else after 1, 2, 4 ...
  seconds.
- *Circuit*: it counts against the circuit of that model or tool.
- *Falls back*: the next model of the chain, or the tool's stand-in, is tried when the attempts are used up.
- *Parks*: with `on_failure="park"` (the default) the run waits at that step; "a while" means that it tries
  again by itself, after some 30 seconds, then after twice as long each time, up to some four minutes; after
  `circuit_open`, when its worker is to look again.

| kind | what it means | again | circuit | falls back | parks | counts as | the model sees | a person sees |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def as_markdown() -> str:
    """The table of all kinds, as `docs/errors.md` has it."""
    return _HEAD + "".join(_row(kind, rule) for kind, rule in RULES.items())


def _row(kind: str, rule: Rule) -> str:
    parks = ("a while" if rule.transient else "until resumed") if rule.parks else ""
    marks = ["yes" if mark else "" for mark in (rule.retried, rule.counts_for_circuit, rule.falls_back)]
    cells = [
        f"`{kind}`",
        rule.meaning,
        *marks,
        parks,
        rule.counts,
        rule.model_sees,
        rule.person_sees,
    ]
    return f"| {' | '.join(cells)} |\n"


class PerdureError(Exception):
    """Base of every error raised by this package."""


class DefinitionError(PerdureError):
    """An agent, tool, limit or setting is ill-formed; nothing was started."""


class InvalidRequest(PerdureError):
    """The call is wrong; nothing was started or changed."""


class RunConflict(InvalidRequest):
    """The run id belongs to a run with another request."""


class NotReachable(PerdureError):
    """The Temporal server, or a worker that could answer, was not reached."""


class ServerBusy(NotReachable):
    """The server has too much to do for one question more; it is there, and workers may be, too."""


class RunNotFound(PerdureError):
    """No run has that id."""


class RunEnded(PerdureError):
    """The run is over, so it cannot be told anything."""


class RunFailed(PerdureError):
    """The run ended in an error.

    `kind` is an `ErrorKind`, or "UnknownAgent", "InvalidRequest", "Terminated", "TimedOut".
    `result` holds what the run had when it failed, if it got as far as a step.
    """

    def __init__(self, message: str, *, kind: str, result: "RunResult | None" = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.result = result


class ModelError(PerdureError):
    """A model call failed; `kind` decides what happens next (see `RULES`).

    Adapters raise it for everything a provider can do wrong. `retry_after` is the delay the
    provider asked for; `usage` what the failed call had cost by then, as far as known.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        retry_after: timedelta | None = None,
        request_id: str | None = None,
        usage: "Usage | None" = None,
    ) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.retry_after = retry_after
        self.request_id = request_id
        self.usage = usage


class ToolError(PerdureError):
    """Base of what a tool may raise to say how its failure is to be taken."""


class RetryableToolError(ToolError):
    """The tool failed in a way that another attempt may mend; `after` delays that attempt."""

    def __init__(self, message: str, *, after: timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after


class FatalToolError(ToolError):
    """The tool failed in a way no retry mends; the model gets the message as an error result."""


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
