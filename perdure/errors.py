"""Errors that this package raises, and the table of what becomes of each failure in a run.

PerdureError
+-- DefinitionError         an agent, tool or setting is ill-formed: change the code
+-- InvalidRequest          a call to us is wrong: change the call
|   +-- RunConflict         the run id belongs to a run with another request
|   +-- UnknownAgent        no worker of the task queue serves the agent
+-- NotReachable            the Temporal server, or a worker, does not answer: try again later
|   +-- ServerBusy          the server answers, and rejects the request because of its load
+-- RunNotFound             no run has that id
+-- OutputMismatch          the output is not of the reading program's type
+-- RunEnded                the run has ended and takes no more messages
+-- RunFailed               the run ended in an error; `kind` says which
+-- ModelError              a model call failed; raised by providers, classified by `kind`
+-- ToolError               raised by a tool's function
    +-- RetryableToolError  another attempt may succeed
    +-- FatalToolError      no attempt can succeed; the model gets the message
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from perdure.delays import sensible_delay

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
    "filtered",
    "circuit_open",
    "throttled",
    "too_large",
    "storage",
    "hook_failed",
    "bug",
    "invalid_arguments",
    "tool_error",
    "tool_timeout",
]
"""Kinds of failures within a run. `RULES` says what each means and what becomes of it."""

Place = Literal["model", "tool", "run"]


class Rule(NamedTuple):
    """Consequences of an error of one kind."""

    place: Place
    """Where the error enters: in a model call, in a tool call, or anywhere in a run."""
    meaning: str
    retried: bool = False
    """Temporal retries the same call, after the provider's own delay if it named one."""
    falls_back: bool = False
    """The next model of the chain is tried once the model's attempts are used up."""
    stands_in: bool = False
    """The tool's `ToolFallback` answers once the tool's attempts are used up."""
    parks: bool = False
    """With `on_failure="park"` the run stops at this step and keeps what it has."""
    transient: bool = False
    """A parked run retries by itself. Without this it waits until a person sends `resume`."""
    counts_for_circuit: bool = False
    """The failure counts towards opening the circuit of the model or tool."""
    blocked_locally: bool = False
    """The worker did not send the call. It learnt nothing about the provider: the backoff does not grow."""
    counts: str = "nothing"
    """Which bounds of the run it uses up."""
    model_sees: str = "nothing"
    person_sees: str = "the run failed, with this kind"


_ATTEMPTS = "one of the call's 6 attempts"
_TOOL_ATTEMPTS = "one of the tool's attempts (`ToolRetry`)"
_PARKED_WITH_RETRY = "the run is parked, and when it tries again"
_PARKED_UNTIL_RESUMED = "the run is parked until it is resumed"
_TOOL_ERROR_RESULT = "the error; of a write that may have taken effect, that too"
_NOT_SENT = "of a model call nothing, as it was not sent; a tool call counts"
_TOOL_NOT_SENT = "of a tool: that it was not called, and why, unless a fallback answers"
_IN_TRANSCRIPT = "the failed call, in the transcript"


def _transient(meaning: str) -> Rule:
    """Return the rule for trouble at the provider that may end within a moment or an hour."""
    return Rule(
        "model",
        meaning,
        retried=True,
        falls_back=True,
        parks=True,
        transient=True,
        counts_for_circuit=True,
        counts=_ATTEMPTS,
        person_sees=_PARKED_WITH_RETRY,
    )


def _needs_person(meaning: str, place: Place = "model") -> Rule:
    """Return the rule for trouble that lasts until a person removes its cause."""
    return Rule(place, meaning, falls_back=place == "model", parks=True, person_sees=_PARKED_UNTIL_RESUMED)


RULES: dict[ErrorKind, Rule] = {
    "rate_limited": _transient("the provider asks us to slow down"),
    "overloaded": _transient("the provider cannot take the call now"),
    "timeout": _transient("no answer in time"),
    "connection": _transient("the provider was not reached, or closed the connection"),
    "stream_cut": _transient("the answer stopped before its end"),
    # The same request tends to give the same answer: time alone does not help.
    "malformed_reply": _transient("the answer cannot be read")._replace(
        transient=False, person_sees=_PARKED_UNTIL_RESUMED
    ),
    "circuit_open": _transient("the model, or tool, failed so often that its calls pause")._replace(
        retried=False,
        stands_in=True,
        counts_for_circuit=False,
        blocked_locally=True,
        counts=_NOT_SENT,
        model_sees=_TOOL_NOT_SENT,
    ),
    # Our own limit has room again within a minute, so a model call parks and retries. A tool call cannot park
    # its run, so its fallback answers.
    "throttled": _transient("our own rate limit has no room for the call within 20 seconds")._replace(
        retried=False,
        falls_back=False,
        stands_in=True,
        counts_for_circuit=False,
        counts=_NOT_SENT,
        model_sees=_TOOL_NOT_SENT,
    ),
    "context_overflow": Rule(
        "model",
        "the conversation does not fit the model",
        counts="nothing: the step is made again",
        model_sees="its window, cut by half; or less of a step's results, when these are most of it",
        person_sees="in the reply's record; the run ended with `context_overflow`, when no cut helped",
    ),
    "authentication": _needs_person("the key is missing, wrong, or not allowed"),
    "payment": _needs_person("a bill, quota or spend limit is in the way"),
    "not_found": _needs_person("the provider knows no such model"),
    "bad_request": Rule("model", "the provider refuses the request as wrong", falls_back=True),
    "filtered": Rule(
        "model",
        'the provider\'s filter refuses what was sent; another model is asked only with `Fallback(on={"filtered"})`',
        model_sees="later: words in place of the messages that it was asked about",
        person_sees="the run, or turn, ended with `refusal`, and with the provider's words",
    ),
    "invalid_arguments": Rule(
        "tool",
        "the model's arguments do not fit the tool, or its output not the type asked for",
        counts="a tool call; an output one of `output_repairs`; five such steps in a row end the run",
        model_sees="what does not fit",
        person_sees=_IN_TRANSCRIPT,
    ),
    "tool_error": Rule(
        "tool",
        "the tool failed; retried only for a lost connection, a timeout, `RetryableToolError`",
        retried=True,
        stands_in=True,
        counts_for_circuit=True,
        counts=_TOOL_ATTEMPTS,
        model_sees=_TOOL_ERROR_RESULT,
        person_sees=_IN_TRANSCRIPT,
    ),
    "tool_timeout": Rule(
        "tool",
        "the tool did not answer in time, or no worker kept its call alive",
        retried=True,
        stands_in=True,
        counts_for_circuit=True,
        counts=_TOOL_ATTEMPTS,
        model_sees=_TOOL_ERROR_RESULT,
        person_sees=_IN_TRANSCRIPT,
    ),
    "too_large": Rule(
        "run",
        "something exceeds a size limit; of a model call: the request has more bytes than it takes",
        falls_back=True,
    ),
    "storage": _needs_person("the blob store takes nothing: a full disk, a missing right", "run"),
    "hook_failed": _needs_person(
        "a hook raised an error, or gave a verdict that its point does not take", "run"
    )._replace(retried=True),
    "bug": Rule("run", "an error that is none of the above"),
}
# No type checker compares a dict's keys with a Literal: a kind without a rule fails here, at import.
assert set(RULES) == set(get_args(ErrorKind))


def rule_for(kind: str) -> Rule:
    """Return the rule of that kind; the rule of "bug" for an unknown kind."""
    return next((rule for known, rule in RULES.items() if known == kind), RULES["bug"])


def match_kind(word: str) -> ErrorKind:
    """Return the kind of error that the word names, or that alone begins with it: `auth`.

    Raises:
        ValueError: no kind begins with the word, or several do; the message is the list of kinds.

    """
    kinds: list[ErrorKind] = [kind for kind in RULES if kind.startswith(word)]
    # A kind may be the beginning of another.
    kinds = [kind for kind in kinds if len(kind) == len(word)] or kinds
    if len(kinds) != 1:
        raise ValueError(", ".join(get_args(ErrorKind)))
    return kinds[0]


_HEAD = """\
# What can go wrong, and what becomes of it

<!-- Written by `python -m perdure.errors`: do not edit it. -->

Each error is classified once, where it enters.

- *Retried*: Temporal retries the same call, after the delay that the provider named, else after 1, 2, 4 ...
  seconds.
- *Circuit*: the failure counts towards opening the circuit of that model or tool.
- *Falls back*: once the attempts are used up, the next model of the chain is tried (*model*), or the tool's
  `ToolFallback` answers (*tool*). No other tool is called in place of a write that may have taken effect: then
  any attempt timed out, lost its connection or its worker, or ended in an error that Perdure does not know.
- *Parks*: with `on_failure="park"` (the default) the run stops at that step and keeps what it has. "retries":
  it tries again by itself, after some 30 seconds, then after twice as long each time, up to some four
  minutes. After `circuit_open` it tries again when its worker allows the next call.

| kind | meaning | retried | circuit | falls back | parks | uses up | the model sees | a person sees |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def as_markdown() -> str:
    """Return the table of all kinds, as `docs/errors.md` has it."""
    return _HEAD + "".join(_row(kind, rule) for kind, rule in RULES.items())


def _row(kind: str, rule: Rule) -> str:
    parks = ("retries" if rule.transient else "until resumed") if rule.parks else ""
    falls_back = [word for word, mark in (("model", rule.falls_back), ("tool", rule.stands_in)) if mark]
    cells = [
        f"`{kind}`",
        rule.meaning,
        "yes" if rule.retried else "",
        "yes" if rule.counts_for_circuit else "",
        ", ".join(falls_back),
        parks,
        rule.counts,
        rule.model_sees,
        rule.person_sees,
    ]
    return f"| {' | '.join(cells)} |\n"


class PerdureError(Exception):
    """Base of every error raised by this package."""


class DefinitionError(PerdureError):
    """An agent, tool, limit or setting is ill-formed. Nothing was started."""


class InvalidRequest(PerdureError):
    """The call is wrong. Nothing was started or changed."""


class RunConflict(InvalidRequest):
    """The run id belongs to a run with another request."""


class UnknownAgent(InvalidRequest):
    """No worker of the task queue serves the agent; the message names the agents that they serve."""


class NotReachable(PerdureError):
    """The Temporal server, or a worker that could answer, was not reached."""


class ServerBusy(NotReachable):
    """The server, or the run itself, has no room for the request now. The same request may succeed later."""


class RunNotFound(PerdureError):
    """No run has that id."""


class OutputMismatch(PerdureError):
    """The output of a run does not fit the output type of the program that reads it; `output` holds its JSON."""

    def __init__(self, message: str, output: Any) -> None:
        super().__init__(message)
        self.output = output


class RunEnded(PerdureError):
    """The run has ended and takes no more messages."""


class RunFailed(PerdureError):
    """The run ended in an error.

    `kind` is an `ErrorKind`, or "InvalidRequest", "Terminated", "TimedOut"; "UnknownAgent" in a test's `running()`.
    `result` holds what the run had when it failed, or None if it never reached a step.
    """

    def __init__(self, message: str, *, kind: str, result: "RunResult | None" = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.result = result


class ModelError(PerdureError):
    """A model call failed; `kind` decides what happens next (see `RULES`).

    Providers raise it for everything that a model's service can do wrong. `retry_after` is the delay that
    the service asked for, within the bounds of `perdure.delays`. `usage` is what the failed call had cost by then, as
    far as known.
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
        self.retry_after = sensible_delay(retry_after)
        self.request_id = request_id
        self.usage = usage


class ToolError(PerdureError):
    """Base of the errors by which a tool's function says whether a retry makes sense."""


class RetryableToolError(ToolError):
    """The tool failed without an effect, and another attempt may succeed; `after` delays that attempt.

    Raised because of a lost connection or a timeout, it says no more about the effect than they do.
    """

    def __init__(self, message: str, *, after: timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after


class FatalToolError(ToolError):
    """The tool failed without an effect, and no attempt can succeed; the model gets the message as an error result.

    Raised because of a lost connection or a timeout, it says no more about the effect than they do.
    """


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
