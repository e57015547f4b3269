"""Inputs of a run, checked where they enter: requests, messages, approval decisions, redrives.

An input that is wrong is refused here, before it becomes an event: an update's validator refuses it for its
caller, and history keeps nothing of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from temporalio import workflow
from temporalio.exceptions import ApplicationError

from perdure.definitions import explain
from perdure.limits import Limits
from perdure.media import problem_with_attachment
from perdure.members import tool_names
from perdure.messages import Document, Image, Message, Part, Text
from perdure.schema import problem_with
from perdure.wire.effects import BindArguments
from perdure.wire.ids import RESERVED, has_child_form
from perdure.wire.names import INVALID_REQUEST, NO_ROOM
from perdure.wire.plain import problem_as_json
from perdure.wire.requests import (
    ApprovalDecision,
    ExtendRequest,
    ExtendTurn,
    Redrive,
    RunRequest,
    SessionRequest,
)
from perdure.wire.results import ApprovalAnswer
from perdure.wire.spec import AgentSpec, ResolvedAgent

from .engine.approvals import MadeDecision, approvals_below, digest_of, names_of, tool_of, waits
from .engine.calls import verdict_on, with_arguments
from .engine.state import AgentState, Call, RunState

_Model = TypeVar("_Model", bound=BaseModel)

MOST_USER_BYTES = 1024
"""Longest user. It becomes a search attribute, and one that the server refuses would hang the run."""


def refuse(message: str) -> ApplicationError:
    """Return the error that the caller of a wrong input gets."""
    return ApplicationError(message, type=INVALID_REQUEST, non_retryable=True)


def no_room(message: str) -> ApplicationError:
    """Return the error that the sender of a message gets whose room is kept for decisions. It may send it again."""
    return ApplicationError(message, type=NO_ROOM, non_retryable=True)


def _validate(what: str, make: Callable[[], _Model]) -> _Model:
    try:
        return make()
    except ValidationError as error:
        raise refuse(f"{what}: {explain(error)}") from None


def check_alone(name: str, more: Sequence[Any]) -> None:
    """Check that nothing stands behind the one argument of an update.

    Raises:
        ApplicationError: for the caller; an argument that is not read may be one that they count on.

    """
    if more:
        raise refuse(f"{name}: takes one argument, not {len(more) + 1}")


def parse(what: str, kind: type[_Model], raw: Any) -> _Model:
    """Return the checked value.

    Raises:
        ApplicationError: for the caller; the words say which field is wrong.

    """
    return _validate(what, lambda: kind.model_validate(raw))


def signal_of(kind: type[_Model], raw: Any) -> _Model | None:
    """Return the checked argument of a signal; None, and a line in the log, for a wrong one."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        workflow.logger.warning("a signal of %s was dropped: %s", kind.__name__, explain(error))
        return None


def check_id(run_id: str) -> None:
    """Check that an id which somebody chose for a run cannot be that of a child run."""
    if has_child_form(run_id):
        raise refuse(f"id {run_id!r}: {RESERVED!r} is for runs that other runs start; choose another id")


def request_of(raw: Any, *, is_child: bool = False) -> RunRequest:
    """Return the checked input of a run, whatever client wrote it."""
    request = _validate("run request", lambda: RunRequest.model_validate(raw))
    _check_writable("run request", request.to_json())
    if isinstance(request.prompt, list):
        # What its parent gives a child stands in the parent's transcript already. The model is told in words.
        _check_parts("prompt", request.prompt, check_bytes=not is_child)
        if not is_child:
            request = request.model_copy(update={"prompt": _uncounted(request.prompt)})
    _check_user("run request", request.user)
    return request


def is_extension(raw: Any) -> bool:
    """Return whether the input is that of a run which goes on from a closed one."""
    return isinstance(raw, dict) and "origin" in raw


def extend_request_of(raw: Any) -> ExtendRequest:
    """Return the checked input of a run that goes on from a closed one, whatever client wrote it."""
    request = _validate("extension", lambda: ExtendRequest.model_validate(raw))
    _check_writable("extension", request.to_json())
    return request


def extend_turn_of(raw: Any) -> ExtendTurn:
    """Return the checked argument of `extend`."""
    request = _validate("extend", lambda: ExtendTurn.model_validate(raw))
    _check_writable("extend", request.model_dump(mode="json"))
    return request


def check_extension_prices(state: RunState, limits: Limits) -> None:
    """Check that a granted bound in money can be kept: the price of each model must be known."""
    specs = [spec for spec in (state.spec, *state.members) if isinstance(spec, AgentSpec)]
    for spec in specs if limits.cost_usd is not None else ():
        check_prices(spec, limited=True, what="extension")


def session_request_of(raw: Any) -> SessionRequest:
    """Return the checked input of a session, whatever client wrote it."""
    request = _validate("session request", lambda: SessionRequest.model_validate(raw))
    _check_writable("session request", request.to_json())
    _check_user("session request", request.user)
    return request


def _check_writable(what: str, value: Any) -> None:
    """Check that the value can be written as JSON, and read again.

    One that comes from a user's workflow may hold what no payload can; the run's tasks would fail for ever.
    """
    problem = problem_as_json(value)
    if problem is not None:
        raise refuse(f"{what}: {problem}")


def _check_user(what: str, user: str | None) -> None:
    if user is not None and len(user.encode()) > MOST_USER_BYTES:
        raise refuse(f"{what}: user: is longer than {MOST_USER_BYTES} bytes; give a name or an id")


def message_of(raw: Any) -> Message:
    """Return the checked argument of `send`: a text, a list of parts, or {"text": "..."}."""
    content: Any = raw.get("text", raw) if isinstance(raw, dict) else raw  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if isinstance(content, str) and content.strip():
        return Message.user(content)
    if isinstance(content, list) and content:
        message = _validate("message", lambda: Message(role="user", parts=content))  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
        _check_parts("message", message.parts)
        return Message(role="user", parts=_uncounted(message.parts))
    raise refuse(f'message: send a text, such as "yes, go on", not {_short(content)}')  # pyright: ignore[reportUnknownArgumentType]


def _uncounted(parts: list[Part]) -> list[Part]:
    """Return the parts without the sender's counts of tokens: only an activity that has read the bytes can count."""
    return [
        part.model_copy(update={"tokens": 0}) if isinstance(part, Image | Document) and part.tokens else part
        for part in parts
    ]


def _check_parts(what: str, parts: list[Part], *, check_bytes: bool = True) -> None:
    """Check that a person's message has text, images or documents that can be read, and nothing else."""
    # Tool calls and their results are the run's own: a person must not be able to forge them.
    has_content = False
    for part in parts:
        match part:
            case Text():
                has_content = has_content or bool(part.text.strip())
            case Image() | Document():
                problem = problem_with_attachment(part) if check_bytes else None
                if problem is not None:
                    raise refuse(f"{what}: {problem}")
                has_content = has_content or bool(part.data or part.blob)
            case _:
                raise refuse(f"{what}: send text, images and documents, not a {part.kind!r}")
    if not has_content:
        raise refuse(f"{what}: is empty: say something")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) < 80 else f"{shown[:77]}..."


def is_within(run_id: str, above: str) -> bool:
    """Return whether the run is that one, or one below it."""
    return run_id == above or run_id.startswith(f"{above}/")


def run_below(state: RunState, run_id: str) -> str:
    """Return the id, if a run of that id goes on below this one.

    Raises:
        ApplicationError: for the caller; there is no such run.

    """
    direct = [child.run_id for child in state.tree.children]
    if any(is_within(run_id, known) for known in direct):
        return run_id
    raise refuse(f"no run {run_id!r} goes on below this one; there are: {', '.join(direct) or 'none'}")


def listener(state: RunState) -> str | None:
    """Return the run below that gets a message without an address that answers nothing, or None for the run itself.

    Raises:
        ApplicationError: for the caller; several runs could be meant, or none is running.

    """
    # In a session it gets a turn of its own.
    if state.reads_messages or state.session is not None:
        return None
    candidates = [child.run_id for child in state.tree.children]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise refuse("nobody here can take a message now: no agent is running")
    raise refuse(f'say to whom, as {{"run_id": "...", "text": "..."}}; there are: {", ".join(candidates)}')


def run_that_waits(state: RunState | None, decision: ApprovalDecision) -> str | None:
    """Return the run below that the approval decision is for, or None for the run itself.

    Raises:
        ApplicationError: for the caller; it is for a run below, and does not say what the person saw there.

    """
    if state is None or decision.run_id == state.id:
        return None
    below = approvals_below(state)
    if decision.digest is not None:
        seen = (decision.call_id, decision.digest)
        found = next((item.run_id for item in below if (item.call_id, item.digest) == seen), None)
        if found is not None and decision.run_id in (None, found):
            return found
        return None if decision.run_id is None else run_below(state, decision.run_id)
    if decision.run_id is not None:
        run_below(state, decision.run_id)
    elif any(waits(call) and call.call.id == decision.call_id for call in state.open_calls):
        return None
    meant = [item for item in below if item.call_id == decision.call_id]
    if decision.run_id is None and not meant:
        return None
    # Another call may wait by now under the id that the person saw.
    raise refuse(
        f"{decision.call_id!r} is a call of a run below: say what you saw there, by the `digest` of the approval "
        f"in the status; these wait: {names_of(below)}"
    )


def decision_of(raw: Any) -> ApprovalDecision:
    """Return the checked argument of `resolve_approval`."""
    decision = _validate("decision", lambda: ApprovalDecision.model_validate(raw))
    if decision.arguments is not None and not decision.allow:
        raise refuse("arguments can be changed only when the call is allowed")
    problem = problem_as_json(decision.arguments)
    if problem is not None:
        raise refuse(f"decision: the arguments cannot be used: {problem}")
    run_id, _, call_id = decision.call_id.rpartition("/")
    if not run_id:
        return decision
    if decision.run_id not in (None, run_id):
        raise refuse(f"decision: call_id names run {run_id!r}, and run_id names {decision.run_id!r}")
    return decision.model_copy(update={"run_id": run_id, "call_id": call_id})


def answer_of(raw: Any, decision: ApprovalDecision, run_id: str) -> ApprovalAnswer:
    """Return the answer of a run below to a decision. One that cannot be read is taken for a plain yes."""
    try:
        return ApprovalAnswer.model_validate(raw)
    except ValidationError:
        return ApprovalAnswer(call_id=decision.call_id, run_id=run_id, allow=decision.allow, by=decision.by)


def redrive_of(raw: Any) -> Redrive:
    """Return the checked argument of `redrive`."""
    redrive = _validate("redrive", lambda: Redrive.model_validate(raw or {}))
    set_limits = redrive.limits.model_fields_set if redrive.limits is not None else set[str]()
    for name in ("timeout", "timeout_excludes_people"):
        if name in set_limits:
            raise refuse(f"redrive: limits.{name}: a run's clock cannot be set anew; leave it out")
    return redrive


def check_redrive(state: RunState | None, redrive: Redrive) -> None:
    """Check that the run is parked, and that the redrive fits it.

    Raises:
        ApplicationError: for the caller; nothing was changed.

    """
    if state is None or not state.can_be_redriven:
        raise refuse("redrive: a swarm or graph is not parked itself; redrive the run below it that is")
    if state.parking.parked is None:
        raise refuse("redrive: the run is not parked")
    if state.session is not None and redrive.limits is not None:
        raise refuse("redrive: limits: those of a session's turn cannot be changed; leave them out")
    if redrive.limits is not None and not redrive.newest:
        check_tool_limits(ResolvedAgent(spec=state.spec, members=state.members), redrive.limits)
    if redrive.limits is not None and redrive.model is None and not redrive.newest:
        check_prices(cast("AgentSpec", state.spec), limited=redrive.limits.cost_usd is not None)


def check_prices(spec: AgentSpec, *, limited: bool, what: str = "redrive") -> None:
    """Check that a cost limit can be kept: the price of each model must be known.

    Raises:
        ApplicationError: for the caller; nothing was changed.

    """
    models = [*spec.models, *([spec.summary_model] if spec.summary_model else [])]
    unknown = [model.config.name for model in models if model.price is None]
    if limited and unknown:
        raise refuse(f"{what}: the cost cannot be bounded: the price of {', '.join(unknown)} is not known")


def check_repeated(made: MadeDecision, decision: ApprovalDecision) -> None:
    """Check that the decision is the one that was made before about the same call.

    Raises:
        ApplicationError: for the caller; the call was decided otherwise, and that stays.

    """
    if not made.agrees_with(decision):
        raise refuse(f"call {made.call_id!r} was {made.words()}; that cannot be changed any more")


def check_tool_limits(resolved: ResolvedAgent, *limits: Limits | None) -> None:
    """Check that each tool that the limits bound is one: a misspelt name would bound nothing.

    Raises:
        ApplicationError: for the caller; nothing was started.

    """
    known = tool_names(resolved)
    for bounds in limits:
        unknown = [] if bounds is None else sorted({*bounds.per_tool} - known)
        if unknown:
            tools = ", ".join(sorted(known)) or "none"
            raise refuse(f"limits.per_tool names {unknown[0]!r}, which is no tool here; there are: {tools}")


def check_decision(state: RunState | None, decision: ApprovalDecision) -> None:
    """Check that the approval decision is for a waiting call, as the person saw it.

    Raises:
        ApplicationError: for the caller; the call still waits.

    """
    calls = state.open_calls if state else ()
    waiting = {call.call.id: call for call in calls if waits(call)}
    call = waiting.get(decision.call_id)
    if state is None or call is None:
        known = ", ".join(
            [*waiting, *([names_of(below)] if state and (below := approvals_below(state)) else [])]
        )
        call_id = f"call {decision.call_id!r}" + (" with this digest" if decision.digest else "")
        raise refuse(f"{call_id} does not wait for an approval; waiting: {known or 'none'}")
    # It waits a second time under the same id, so an id alone may be meant for the first.
    if decision.digest is None and (call.approval is not None or call.stand_in is not None):
        raise refuse(
            f"call {decision.call_id!r} waits once more, now for {tool_of(call)!r}: "
            "name the digest of what you have seen"
        )
    # The digest proves that the person approves the arguments that will be used.
    if decision.digest is not None and decision.digest != digest_of(state, call):
        raise refuse(f"call {decision.call_id!r} is not what you saw: its digest is another; look again")
    # Only an agent's run has calls of its own, so the waiting call is proof of its kind.
    _check_arguments(cast("AgentState", state), call, decision)


def edit_to_bind(state: RunState | None, decision: ApprovalDecision) -> BindArguments | None:
    """Return the edited arguments of a function, for the worker to bind; None if the schema alone decides.

    Raises:
        ApplicationError: for the caller; the call does not wait any more, or the arguments do not fit.

    """
    check_decision(state, decision)
    agent = cast("AgentState", state)
    call = next(call for call in agent.step.calls if call.call.id == decision.call_id)
    tool = agent.spec.tool(tool_of(call))
    if tool is None or tool.kind != "function" or decision.arguments is None:
        return None
    edited = with_arguments(tool, call.call, decision.arguments)
    return BindArguments(
        agent=agent.spec.name,
        tool=tool.name,
        arguments=edited.arguments,
        input_schema=tool.input_schema,
        resource=tool.resource,
    )


def _check_arguments(state: AgentState, call: Call, decision: ApprovalDecision) -> None:
    """Check arguments that the person changed: a mistake in them must not use up the approval."""
    tool = state.spec.tool(tool_of(call))
    if decision.arguments is None or tool is None:
        return
    edited = with_arguments(tool, call.call, decision.arguments)
    problem = problem_with(edited.arguments, tool.input_schema)
    if problem is not None:
        raise refuse(f"the arguments do not fit {tool.name!r}: {problem}")
    # The policy allowed, or let a person allow, other arguments.
    if verdict_on(state, tool, edited) == "deny":
        raise refuse(f"the policy does not allow {tool.name!r} with these arguments; the call still waits")
