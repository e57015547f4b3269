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
    from perdure.wire import RunResult

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
    "too_large",
    "storage",
    "bug",
]


class Rule(NamedTuple):
    """What becomes of an error of one kind."""

    retried: bool
    """Temporal tries the same call again, after the provider's own delay if it named one."""
    falls_back: bool
    """The next model of the chain is tried when this one has given up."""
    parks: bool
    """A person can mend it: with `on_failure="park"` the run waits for `resume`."""
    meaning: str


RULES: dict[ErrorKind, Rule] = {
    "rate_limited": Rule(True, True, True, "the provider asks us to slow down"),
    "overloaded": Rule(True, True, True, "the provider cannot take the call now"),
    "timeout": Rule(True, True, True, "no answer in time"),
    "connection": Rule(True, True, True, "the provider was not reached, or hung up"),
    "stream_cut": Rule(True, True, True, "the answer stopped before its end"),
    "malformed_reply": Rule(True, True, True, "the answer cannot be read"),
    "context_overflow": Rule(False, False, False, "the conversation does not fit the model"),
    "authentication": Rule(False, True, True, "the key is missing, wrong, or not allowed"),
    "payment": Rule(False, True, True, "a bill, quota or spend limit is in the way"),
    "not_found": Rule(False, True, True, "the provider knows no such model"),
    "bad_request": Rule(False, True, False, "the provider refuses the request as wrong"),
    "too_large": Rule(False, False, False, "something exceeds a size limit"),
    "storage": Rule(False, False, True, "the blob store takes nothing: a full disk, a missing right"),
    "bug": Rule(False, False, False, "something we did not foresee"),
}
assert set(RULES) == set(get_args(ErrorKind))


def rule_for(kind: str) -> Rule:
    """The rule of that kind; a kind we do not know is a bug of ours."""
    return next((rule for known, rule in RULES.items() if known == kind), RULES["bug"])


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
