"""State of a run: frozen values, grouped by what replaces them together.

Theory of operation
1. `decide(state)` returns the next command and never carries it out. `fold(state, event)` changes the state, and
   nothing else does but rule 4. Both are pure and free of clocks: time arrives inside events. Both are total, but for
   `MissingCode` and `BrokenContract`, which the user's code causes.
2. A step is one model call and the tool calls that its reply asks for. Either the model is being asked or the
   step's calls are open, never both.
3. Messages only grow at their end. A tool message is written once, when every call of its step has a result.
   So the transcript is well-formed whenever a model is asked.
4. `fold` writes an end that a reply or a failure makes into `end`. `decide` makes the end itself when a limit or a
   request ends the run. `Finish` carries either, and the loop writes it into `end`.
5. The state holds everything needed to go on. Continue-as-new carries it and nothing else.
6. The ledger counts the run and those of its children that have ended. Each child is counted once, at its end,
   and so reaches the root.
7. A turn of a session replaces the parts `step`, `chain` and `parking`; it keeps the others.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import ClassVar, Literal, Self

from perdure.hooks import HookPoint
from perdure.limits import Limits
from perdure.messages import ApprovalRecord, HookRecord, Message, ToolCall, ToolResult, Usage
from perdure.wire.requests import RunRequest
from perdure.wire.results import Failure, StopReason, TurnReply, UpgradeRecord
from perdure.wire.spec import AgentSpec, AnySpec, ToolKind
from perdure.wire.tree import ChildInput, Handoff, Peer

from .past import NextAgent, Past, TurnExtension, UsualTurn
from .people import Clock, PeopleTime, RelayedAnswer, RelayedDecision
from .transcript import Transcript
from .tree import Tree

# See `Call` for the transitions.
# Without hooks, budget or approval a call begins as ready. A call that cannot run begins as done.
CallState = Literal[
    "unpaid", "unchecked", "checking", "ready", "asking", "running", "unreviewed", "reviewing", "done"
]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call of the current step.

    Each state, its meaning, and the states that may follow. Any may also become "done".

        unpaid      waits until the lender lets the run make more calls   unchecked, ready, asking
        unchecked   waits until the hooks before the call are asked       checking
        checking    these hooks are being asked                           ready, asking, unchecked
        asking      waits for a person                                    ready
        ready       may start                                             running
        running     its activity or child run is pending                  unreviewed, ready (stand-in), asking (hook)
        unreviewed  waits until the hooks after the call are asked        reviewing
        reviewing   these hooks are being asked                           unreviewed
        done        has its result
    """

    call: ToolCall
    kind: ToolKind
    state: CallState
    since: datetime
    result: ToolResult | None = None
    edited: bool = False
    """True when a person changed the arguments."""
    approval: ApprovalRecord | None = None
    """Decision of the person who was asked about the call."""
    stand_in: str | None = None
    """Name of the tool that is called instead, after the call's own tool has failed."""
    failed: str = ""
    """Error text of the failed tool."""
    checked: bool = False
    """True once the hooks before the call have been asked."""
    ask_reason: str = ""
    """Reason of the hook that wants a person to decide."""
    unreviewed: ToolResult | None = None
    """Result that the hooks after the call have not seen yet."""
    records: tuple[HookRecord, ...] = ()
    """Verdicts of hooks before the call, for its result."""


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of a run. With `failure` set the run fails, unless `answers` is set too."""

    stop_reason: StopReason
    output: object = None
    failure: Failure | None = None
    answers: bool = False
    """True: the run ends as completed in spite of the failure."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Sums over the life of a run, its ended children included. They never decrease."""

    # Integers, never floats: no order of additions may change a sum.
    usage: Usage = Usage()
    cost_microusd: int = 0
    cost_unknown: bool = False
    """True once a model was used whose price is not known."""
    tool_calls: int = 0
    per_tool: dict[str, int] = field(default_factory=dict[str, int])
    """Calls of each tool: the run's own, and those of ended children that a bound counts."""
    refused: dict[str, int] = field(default_factory=dict[str, int])
    """The run's own calls that a limit has refused, by tool."""
    steps: int = 0
    """Model calls: the run's own, or those of a team's nodes."""
    estimates: int = 0
    """Bookings that were estimated: a turn of a session knows by it whether its own usage is."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The current step. Counters such as `invalid_steps` outlive it, and begin anew with a turn."""

    asking_model: bool = False
    redo: bool = False
    """True when the model call gave no reply: the next one is the same step."""
    calls: tuple[Call, ...] = ()
    clamped_by: StopReason | None = None
    """The budget that made this call's max_tokens smaller than configured."""
    wrap_up: StopReason | None = None
    """A limit that is reached: the model gets one last call without tools, then the run ends with this reason."""
    handoff: Handoff | None = None
    """The handoff that takes effect once all calls of the step have results."""
    resting: bool = False
    """True when the model has ended its turn while children run: their answers wake it."""
    invalid_steps: int = 0
    """Steps in a row of which no call could be carried out."""
    identical: dict[str, int] = field(default_factory=dict[str, int])
    """Identical calls, by digest, the newest last; empty where `Limits.identical_calls` is not set."""
    repairs: int = 0
    """Attempts at an output that did not fit the output type."""
    stale_retries: int = 0
    """Retries because the worker's transcript was stale."""
    asking_hooks: HookPoint | None = None
    """Point whose hooks are being asked by an activity of their own."""
    start_checked: bool = False
    end_checked: bool = False
    """True once the hooks at the start, or at the end, of the run or turn have been asked."""
    proposed_end: End | None = None
    """End that the hooks have not let through yet. The run takes messages and commands meanwhile."""
    ending_text: str | None = None
    """Answer with which a hook ends the turn, once all calls of the step have results."""
    summarizing: int = 0
    """Index before which messages are being summarized; 0: the model call, if any, is the step's."""
    overflow_cuts: int = 0
    """Cuts of the window in a row after the provider reported that the context overflows."""
    cut_to: int = 0
    """Start to which the window must move after an overflow, as the agent's context strategy does it."""
    kept_output: object = None
    """Typed answer that stood beside other calls: the output, if no further model call is allowed."""
    cut_replies: int = 0
    """Replies in a row that were cut in the midst of their only call."""
    empty_replies: int = 0
    """Replies in a row with neither words nor calls."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Position in the chain of models: the agent's model and its fallbacks."""

    model: int = 0
    """Index of the model in use."""
    base_model: int = 0
    """Index of the model that the next step begins with."""
    tried: tuple[str, ...] = ()
    """Models of this step that failed, each with its error: people see in the reply's meta why another answered."""


@dataclass(frozen=True, kw_only=True)
class Parking:
    """Reason for a run to stand still, and its retries."""

    parked: Failure | None = None
    auto_retries: int = 0
    """Retries in a row that the run made by itself."""
    outage: Failure | None = None
    """The first failure of this outage. It stays between two retries, until a model answers."""
    force_once: bool = False
    """True after a person resumed the run: the next model call passes an open circuit once."""


@dataclass(frozen=True, kw_only=True)
class Inbox:
    """Messages that the model has not read yet."""

    messages: tuple[Message, ...] = ()
    unanswered: tuple[int, ...] = ()
    """Indexes of messages that are in the transcript, and that no reply has followed yet."""
    below: tuple[tuple[int, str], ...] = ()
    """What runs below have left undone: a line, and the step whose model call is the first to see it."""
    # Bounded by `MOST_SEEN_IDS`: a message that comes again comes soon.
    seen_ids: tuple[str, ...] = ()
    """Update ids of the newest messages. Temporal forgets them when a run continues as new."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A message to a session, with the id by which its sender knows it."""

    id: str
    message: Message


@dataclass(frozen=True, kw_only=True)
class TurnStart:
    """Counts of a session at the start of its turn. What the turn itself has used is the difference to them."""

    at: datetime
    """Start of the turn. Between two turns it is the end of the last one, from which idle time counts."""
    people: timedelta = timedelta()
    """Sum of the waits for people before the turn."""
    messages: int = 0
    ledger: Ledger = Ledger()
    counted_from: Ledger | None = None
    """Of a turn that goes on: counts at its first start, from which its limits count."""


@dataclass(frozen=True, kw_only=True)
class AnsweredTurn:
    """A turn that is over, kept for messages that come again."""

    ids: tuple[str, ...]
    reply: TurnReply
    text_at: int | None = None
    """Index of the message that holds the reply's text, when the text is too long to keep twice."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Part of the state that only a session has. Its rules stand in `session`."""

    turn_limits: Limits
    limits: Limits
    """Limits of the whole session."""
    max_idle: timedelta | None
    deadline_at: datetime | None
    start: TurnStart
    turn: int = 0
    turn_is_open: bool = False
    """True while a turn goes on."""
    ids: tuple[str, ...] = ()
    """Ids of the messages that the turn answers."""
    unread: tuple[Utterance, ...] = ()
    """Messages that steer the turn, once the model reads them."""
    queue: tuple[Utterance, ...] = ()
    # Bounded by number and by bytes in `session`.
    answered: tuple[AnsweredTurn, ...] = ()
    unnamed: int = 0
    """Number of messages that came without an id of their own."""
    closing: StopReason | None = None
    """Set when the session is to end after the turn."""
    extension: TurnExtension | None = None
    """Set when the last turn is to go on."""
    usual: UsualTurn | None = None
    """Set while a turn goes on with limits of its own."""
    upgrades_each_turn: bool = False
    next_agent: NextAgent | None = None
    """Version that the session takes after the turn."""
    upgrades: tuple[UpgradeRecord, ...] = ()  # bounded in `upgrade`


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Origin of a run, beside its request."""

    id: str = ""
    """Workflow id of the run."""
    members: tuple[AnySpec, ...] = ()
    child: ChildInput | None = None
    """Input from the parent; None for a root."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """State that every program has: identity, limits, ledger, place in the tree, end."""

    request: RunRequest
    spec: AnySpec
    limits: Limits
    """The spec's limits, tightened by the request's."""
    started_at: datetime
    deadline_at: datetime | None = None  # counts all time; `clock` does not
    clock: Clock | None = None
    people: PeopleTime = PeopleTime()  # noqa: RUF009 - a frozen value
    id: str = ""
    """Workflow id of the run. The ids of its children begin with it."""
    members: tuple[AnySpec, ...] = ()
    """Specs of everything that the run may start, directly or through others."""
    # The parts. Each is replaced as a whole, so an event that concerns one part cannot change another.
    tree: Tree = Tree()  # noqa: RUF009 - a frozen value
    ledger: Ledger = Ledger()
    parking: Parking = Parking()
    paused: bool = False
    resets: int = 0
    """Resets of the run before it last continued as new."""
    past: Past = Past()  # noqa: RUF009 - a frozen value
    # Five fields concern an end. `ending`: requested from outside, pending work is being cancelled. `end`: made.
    # `Step.proposed_end`: made, but hooks must let it through. `Step.ending_text`: a hook's answer, which becomes
    # the end once the step is over. `Session.closing`: the session, not only its turn, is to end.
    ending: StopReason | None = None
    """Set when the end was requested from outside; pending work is being cancelled."""
    end: End | None = None
    session: Session | None = None
    # Bounded, as is `answers`: a click that comes again comes soon.
    relayed: tuple[RelayedDecision, ...] = ()
    """Newest decisions about calls of runs below."""
    answers: tuple[RelayedAnswer, ...] = ()
    """Newest answers to questions of runs below."""

    # Differences between kinds of programs, as values: nothing asks for the kind itself.
    counts_steps: ClassVar[bool] = True
    """True when `limits.steps` bounds the run's own model calls, False when it bounds each run below."""
    reads_messages: ClassVar[bool] = True
    """True when a model of the run itself reads its messages."""
    can_be_redriven: ClassVar[bool] = True
    """True when the run itself may be parked, because it calls models."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The transcript, as the transcript query shows it."""
        return ()

    def with_messages(self, messages: tuple[Message, ...]) -> Self:
        """Return the state with these messages in place of its own. Continue-as-new carries them apart."""
        assert not messages, "a run without a transcript has no messages"
        return self

    @property
    def summary(self) -> str:
        """Summary of the messages that the model no longer sees."""
        return ""

    @property
    def open_calls(self) -> tuple[Call, ...]:
        """Tool calls of the current step."""
        return ()

    def result_of(self, call_id: str) -> ToolResult | None:
        """Return the result of the run's own call of that id, if it has one."""
        return None

    def decision_on(self, call_id: str) -> ApprovalRecord | None:
        """Return a person's decision about the run's own call of that id, if there was one."""
        opened = next((call for call in self.open_calls if call.call.id == call_id), None)
        result = self.result_of(call_id)
        return opened.approval if opened else result.approval if result else None

    @property
    def unread_count(self) -> int:
        """Number of accepted messages that no model has read."""
        return len(self.session.queue) if self.session else 0

    @property
    def unread_below(self) -> tuple[Message, ...]:
        """Accepted messages that runs below have not read, and that nobody there reads any more."""
        return ()

    @property
    def is_priced(self) -> bool:
        """True when the cost of what comes next is known."""
        return True

    @property
    def is_busy(self) -> bool:
        """True while anything is pending."""
        raise NotImplementedError

    @property
    def works_itself(self) -> bool:
        """True while the run itself, not a run below it, has a call pending."""
        raise NotImplementedError

    @property
    def activity(self) -> Literal["thinking", "acting"]:
        """Status of a run that waits for nobody."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AgentState(RunState):
    """State of an agent's run or session."""

    spec: AgentSpec
    transcript: Transcript = field(default_factory=Transcript)
    step: Step = Step()
    chain: Chain = Chain()
    inbox: Inbox = Inbox()
    new_limits: Limits | None = None
    """Limits that a person has set since the start, in place of the run's own."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The transcript."""
        return self.transcript.messages

    def with_messages(self, messages: tuple[Message, ...]) -> Self:
        """Return the state with these messages in its transcript."""
        return replace(self, transcript=replace(self.transcript, messages=messages))

    @property
    def summary(self) -> str:
        """Summary of the messages that have left the window."""
        return self.transcript.summary

    @property
    def open_calls(self) -> tuple[Call, ...]:
        """Tool calls of the current step."""
        return self.step.calls

    def result_of(self, call_id: str) -> ToolResult | None:
        """Return the result of the run's own call of that id, if it has one."""
        for call in self.step.calls:
            if call.call.id == call_id:
                return call.result
        # Messages before `own_start` are of another run, whose calls may have the same ids.
        for message in reversed(self.transcript.messages[self.transcript.own_start :]):
            for result in message.tool_results:
                if result.call_id == call_id:
                    return result
        return None

    @property
    def unread_count(self) -> int:
        """Number of accepted messages that no model has read."""
        return len(self.inbox.messages) + super().unread_count

    @property
    def is_priced(self) -> bool:
        """True when the price of the model in use is known."""
        return self.spec.models[self.chain.model].price is not None

    @property
    def first_message(self) -> int:
        """Index of the message with which the run, or the current turn, began."""
        return self.session.start.messages if self.session else self.transcript.own_start

    @property
    def is_busy(self) -> bool:
        """True while anything is pending."""
        # Children that were called and answer later count too: they must not lose their parent.
        running = any(call.state == "running" for call in self.step.calls)
        asking = self.step.asking_model or self.step.asking_hooks is not None
        return asking or running or bool(self.tree.children)

    @property
    def works_itself(self) -> bool:
        """True while a model call, or a tool call of its own, is pending."""
        return self.step.asking_model or self.step.asking_hooks is not None or self.runs_tools

    @property
    def runs_tools(self) -> bool:
        """True while a tool call of its own is running."""
        return any(call.state == "running" and call.kind != "agent" for call in self.step.calls)

    @property
    def peers(self) -> list[Peer]:
        """Agents that the run may hand off to."""
        return self.tree.peers

    @property
    def activity(self) -> Literal["thinking", "acting"]:
        """Status of a run that waits for nobody."""
        return "acting" if self.step.calls or self.step.resting else "thinking"
