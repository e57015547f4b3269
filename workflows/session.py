"""SessionWorkflow: a conversation that outlives a turn. Handlers only; the loop is in `loop`, the turns in `engine`.

One workflow is one session, however long: it holds the transcript, so a turn carries nothing. A sender that waits for
a reply never delays it: a `say` that would is answered with `done: false`, and its sender asks again with the same
message id.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from perdure.limits import Limits
from perdure.wire.names import EXTEND, INTERRUPT, REPLY, SAY, SESSION_OVER, SESSION_WORKFLOW, UPGRADE
from perdure.wire.requests import ExtendTurn, SessionMessage, SessionRequest, UpgradeRequest
from perdure.wire.results import RunResult, StopReason, TurnReply, UpgradeAnswer
from perdure.wire.spec import AnySpec
from perdure.wire.tree import ChildInput

from .arguments import Carried, read_arguments
from .bound_programs import bound_program
from .ending import EndedBeforeBeginningError, RunIsEndingError
from .engine.carry import format_of, spec_in
from .engine.clocks import deadline_of
from .engine.events import Said, TurnExtended, TurnInterrupted, Upgraded
from .engine.extension import granted_limits
from .engine.session import SessionProgram, is_pending, priced_request, reply_to, session_of
from .engine.state import Origin, Session, Utterance
from .engine.turn_extension import checked_turn_extension
from .extension import ExtendableRun, executions_below
from .inputs import (
    check_alone,
    check_extension_prices,
    check_tool_limits,
    extend_turn_of,
    is_extension,
    no_room,
    refuse,
    session_request_of,
)
from .questions import Delivery, Incoming, said_of
from .renewal import MOST_REPEATING, MOST_WAITING
from .upgrade import ASKED_WITHIN, EACH_TURN_WITHIN, fetch_newest, is_newer, upgrade_of


@workflow.defn(name=SESSION_WORKFLOW)
class SessionWorkflow(ExtendableRun):
    """Workflow of a session with an agent, a swarm or a graph."""

    def __init__(self) -> None:
        super().__init__()
        self._loop.bind = self._bind
        self._waiting = 0
        self._arriving = set[str]()
        """Ids of messages that no event has brought into the state yet."""
        self._repeating = 0
        self._is_looking = False
        """Senders of a message that is arriving already."""
        self._refused: ApplicationError | None = None

    @workflow.run
    async def run(self, *arguments: Any) -> RunResult:
        """Hold a session to its end. The first argument is a SessionRequest as JSON; the others are ours."""
        self._has_begun = True
        try:
            request = await self._begin(arguments)
        except EndedBeforeBeginningError as end:
            self._refused = _unread_error(end.reason)
            return await self._end_early(end)
        return await self._loop.run(request)

    async def _begin(self, arguments: Sequence[Any]) -> Any:
        try:
            match read_arguments(arguments):
                case request, Carried() as carried:
                    self._loop.restore(self._bind(spec_in(carried.state)), carried.state, carried.chunks)
                case request, None if is_extension(request):
                    await self._go_on(request)
                case request, None:
                    await self._open(session_request_of(request))
                case _, ChildInput():
                    raise refuse("a session takes one argument, its request: no run can start it as its own")
            return request
        except ApplicationError as error:
            # Senders that wait get the reason first; a closed workflow could only say that it is closed.
            self._refused = error
            self._early_status = "failed"
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise

    def _bind(self, spec: AnySpec) -> SessionProgram:
        return SessionProgram(bound_program(spec))

    async def _open(self, request: SessionRequest) -> None:
        self._agent = request.agent
        # One clock: the time in which the session cannot begin counts too.
        began = workflow.now()
        deadline = deadline_of(request.session_limits or Limits(), began, None)
        resolved = await self._resolve(priced_request(request), None, deadline)
        check_tool_limits(resolved, request.limits, request.session_limits)
        origin = Origin(id=workflow.info().workflow_id, members=resolved.members)
        program = self._bind(resolved.spec)
        state = program.open(request, began, origin)
        self._loop.begin(program, state, format_of(resolved))

    @property
    def _session(self) -> Session:
        return session_of(self._ready())

    @workflow.update(
        name=SAY,
        description='Say something: {"id": "yours", "text": "...", "when_busy": "queue" or "steer"}. '
        'With "call_id" it answers that question. '
        "Answers with the turn's reply; the same id again, with the same one.",
    )
    async def say(self, message: Any = None, *_more: Any) -> TurnReply:
        """Give the session a message; return the reply when its turn is over, or `done: false` before that."""
        await self._begin_update(lambda: self._check_say(message))
        request, incoming = said_of(message)
        message_id = request.id
        await self._take_in(request, incoming)
        return await self._reply_when_done(message_id)

    async def _reply_when_done(self, message_id: str) -> TurnReply:
        self._waiting += 1
        try:
            # More senders than that get `done: false` at once, and poll.
            if self._waiting <= MOST_WAITING and self._refused is None:
                await workflow.wait_condition(
                    lambda: self._loop.renewal.is_renewing or self._is_answered(message_id)
                )
            return self._reply_or_raise(message_id)
        finally:
            self._waiting -= 1

    @say.validator
    def _check_say(self, message: Any = None, *more: Any) -> None:
        check_alone(SAY, more)
        request, incoming = said_of(message)
        state = self._loop.state
        if state is None or reply_to(state, request.id) is None:
            self._refuse_when_over()
        if self._is_restoring:
            return
        is_arriving = request.id in self._arriving
        # Of a message that is arriving already, the question may be answered by now.
        self._refuse_without_room(Delivery() if is_arriving else self._delivery(incoming))
        if is_arriving and self._repeating >= MOST_REPEATING:
            raise no_room("the same message is arriving already; ask for its reply by the query `reply`")

    async def _take_in(self, request: SessionMessage, incoming: Incoming) -> None:
        """Bring the message into the state: once, however often it is said meanwhile."""
        self._repeating += 1
        try:
            await self._until_arrived(request.id)
        finally:
            self._repeating -= 1
        if self._is_taken(request.id):
            return
        with self._arrival(request.id):
            await self._look_for_newest()
            self._loop.events.append(await self._deliver(request, incoming))
            await workflow.wait_condition(lambda: self._is_taken(request.id))

    async def _until_arrived(self, message_id: str) -> None:
        while message_id in self._arriving:
            await workflow.wait_condition(lambda: message_id not in self._arriving)

    @contextmanager
    def _arrival(self, message_id: str) -> Generator[None]:
        """Keep others of the same id waiting while it is brought into the state."""
        self._arriving.add(message_id)
        try:
            yield
        finally:
            self._arriving.discard(message_id)

    async def _deliver(self, request: SessionMessage, incoming: Incoming) -> Said:
        """Hand the answer to a question of a run below to that run; return what the session itself takes in."""
        utterance = Utterance(id=request.id, message=incoming.message)
        # The turn that asks: it may be over by the time at which the run below has the answer.
        turn = session_of(self._loop.state).turn if self._loop.state is not None else 0
        event = Said(utterance=utterance, when_busy=request.when_busy, turn=turn)
        delivery = self._delivery(incoming)
        if delivery.made is not None and not self._session.turn_is_open:
            raise refuse(f"question {delivery.made.call_id!r} was answered already, and its turn is over")
        if delivery.run_id is None:
            # The same answer again belongs to the same turn.
            return replace(event, call_id=delivery.call_id, delivered=delivery.made is not None)
        try:
            await self._relays.deliver(delivery, incoming)
        except ApplicationError:
            named = incoming.call_id is not None or incoming.run_id is not None
            # A question that still waits needs the answer: its turn, and every later one, waits for it.
            if named or (not self._loop.is_ending and self._delivery(incoming).run_id is not None):
                raise
            return event  # the question is answered, or its run has ended: the message gets a turn of its own
        return replace(event, delivered=True)

    def _is_taken(self, message_id: str) -> bool:
        """Return whether the state has the message: only then may its sender be sent away."""
        if self._loop.state is None:
            return self._refused is not None
        return is_pending(self._loop.state, message_id) or self._is_answered(message_id)

    def _is_answered(self, message_id: str) -> bool:
        # A closing session still answers the messages of its open turn.
        over = self._session.closing is not None and not self._session.turn_is_open
        return over or reply_to(self._ready(), message_id) is not None

    def _reply_or_raise(self, message_id: str) -> TurnReply:
        if self._refused is not None:
            raise self._refused
        reply = reply_to(self._ready(), message_id)
        if reply is not None:
            return reply
        if self._is_answered(message_id):
            raise _unread_error(self._session.closing)
        return TurnReply(message_id=message_id, done=False, turn=self._session.turn)

    # -- more for the last turn

    @workflow.update(
        name=EXTEND,
        description="Let the last turn go on, which a limit has ended: "
        '{"id": "yours", "limits": {"steps": 80}, "by": "you", "reason": "..."}. Answers as `say`.',
    )
    async def extend(self, how: Any = None, *_more: Any) -> TurnReply:
        """Let the last turn go on with larger limits; return its reply, or `done: false` before that."""
        await self._begin_update(lambda: self._check_extend(how))
        request = extend_turn_of(how)
        await self._until_arrived(request.id)
        if not self._is_taken(request.id):
            with self._arrival(request.id):
                await self._take_extension(request)
        return await self._reply_when_done(request.id)

    @extend.validator
    def _check_extend(self, how: Any = None, *more: Any) -> None:
        check_alone(EXTEND, more)
        request = extend_turn_of(how)
        if self._is_restoring or reply_to(self._ready(), request.id) is not None:
            return
        self._refuse_when_over()
        self._refuse_without_room(Delivery())
        if self._session.turn_is_open and not is_pending(self._ready(), request.id):
            raise refuse("extend: a turn is under way; wait for its end, or interrupt it")

    async def _take_extension(self, request: ExtendTurn) -> None:
        try:
            executions = await self._loop.ending.race(executions_below(self._ready()))
            bind, state = bound_program, self._ready()
            extension = checked_turn_extension(state, request, workflow.now(), bind, executions)
        except RunIsEndingError:
            raise refuse("the session is ending") from None
        except ActivityError:
            raise refuse("extend: no worker was free to look at the runs below; try again later") from None
        except ValueError as error:
            raise refuse(f"extend: {error}") from None
        check_extension_prices(state, granted_limits(type(state.spec.limits), request.limits))
        event = TurnExtended(extension=extension)
        self._loop.events.append(event)
        await workflow.wait_condition(lambda: event not in self._loop.events)
        if not self._is_taken(request.id):
            raise refuse("extend: a turn has begun meanwhile; nothing was changed")

    # -- the version of the agent

    @workflow.update(
        name=UPGRADE,
        description="Take the newest version of the agent, once no turn is under way: "
        '{"by": "you", "reason": "...", "agent_version": null}.',
    )
    async def upgrade(self, how: Any = None, *_more: Any) -> UpgradeAnswer:
        """Take the agent as the workers have it now, between two turns."""
        await self._begin_update(lambda: self._check_upgrade(how))
        if self._loop.renewal.moves_to_new_version(self._session):
            self._loop.wake()  # then a worker of the new version fetches its own agent
            raise no_room("the session moves to a newer version of its worker; ask again in a moment")
        return await self._upgrade(upgrade_of(how), within=ASKED_WITHIN)

    @upgrade.validator
    def _check_upgrade(self, how: Any = None, *more: Any) -> None:
        check_alone(UPGRADE, more)
        upgrade_of(how)
        if not self._is_restoring:
            self._ready()
            self._refuse_without_room(Delivery())
        self._refuse_when_over()

    async def _upgrade(self, request: UpgradeRequest, *, within: timedelta) -> UpgradeAnswer:
        agent = await fetch_newest(self._ready(), request, self._loop.ending, within=within)
        changed, before = is_newer(self._ready(), agent), self._ready().spec.hash
        if changed:
            self._loop.events.append(Upgraded(agent=agent))
        after_turn = changed and self._session.turn_is_open
        return UpgradeAnswer(before=before, after=agent.spec.hash, changed=changed, after_turn=after_turn)

    async def _look_for_newest(self) -> None:
        """Take the newest version, in a session that was opened so. A message never waits long, or fails, for it."""
        state = self._loop.state
        if state is None or not session_of(state).upgrades_each_turn:
            return
        if self._is_looking:
            # Whoever comes meanwhile waits for the same answer, so that messages keep their order.
            await workflow.wait_condition(lambda: not self._is_looking)
            return
        request = UpgradeRequest(reason="each turn takes the newest version")
        self._is_looking = True
        try:
            await self._upgrade(request, within=EACH_TURN_WITHIN)
        except ApplicationError as error:
            workflow.logger.warning("the session keeps the version that it has: %s", error.message)
        finally:
            self._is_looking = False

    @workflow.query(name=REPLY, description="The reply to the message of that id, as far as there is one.")
    def reply(self, message_id: Any = None, *_more: Any) -> TurnReply:
        """Return the reply to a message, or that it is pending or unknown. Asking costs no history."""
        state = self._ready()
        if not isinstance(message_id, str):
            raise refuse("reply: ask for the id of a message, as a text")
        known = is_pending(state, message_id)
        pending = TurnReply(message_id=message_id, done=False, known=known, turn=self._session.turn)
        return reply_to(state, message_id) or pending

    @workflow.signal(name=INTERRUPT, description="End the turn, not the session, with what there is.")
    def interrupt(self, *_: Any) -> None:
        """End the turn gracefully."""
        self._loop.events.append(TurnInterrupted())

    def _refuse_when_over(self) -> None:
        state = self._loop.state
        over = state is not None and session_of(state).closing is not None
        if over or self._is_ending:
            raise ApplicationError("the session is over", type=SESSION_OVER, non_retryable=True)


def _unread_error(reason: StopReason | None) -> ApplicationError:
    """Return the error for the sender of a message that the session did not read before its end."""
    message = f"the session ended ({reason}) before it read this message"
    return ApplicationError(message, type=SESSION_OVER, non_retryable=True)
