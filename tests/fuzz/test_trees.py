"""Whole trees of runs under everything that may happen to them, in any order: see `world`.

What always holds is checked in `world` at every fold and every command. At the end the world is made
friendly, and every run of the tree must come to its end.
"""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perdure.errors import RULES
from perdure.messages import Message, ToolCall, Usage
from perdure.wire.effects import CUT_CALL, ModelFailure
from perdure.wire.names import FINAL_ANSWER, HANDOFF, READ_RESULT, UPDATE_PLAN
from perdure.wire.requests import ApprovalDecision
from perdure.wire.results import Approval, Parked, Question, RunResult
from perdure.workflows.engine.amounts import bounds_of
from perdure.workflows.engine.events import (
    AnswerRelayed,
    ApprovalResolved,
    CallReturned,
    ChildEnded,
    EndRequested,
    Event,
    IdleChecked,
    MessageSent,
    ModelFailed,
    Paused,
    Resumed,
    Said,
    TurnInterrupted,
)
from perdure.workflows.engine.people import RelayedAnswer
from perdure.workflows.engine.questions import open_questions
from perdure.workflows.engine.report import waiting_of
from perdure.workflows.engine.session import is_pending, reply_to, session_of
from perdure.workflows.engine.state import AgentState, Utterance
from tests.unit.runs import call, result

from . import casts
from .depth import examples
from .kept import check_kept
from .world import Shell, World, flights

NAMES = ["work", "work", "single", "pay", "ask_person", "worker", "helper", "minion", "nobody", READ_RESULT]
ARGUMENTS = {"input": "do it", "question": "which?"}


def handing_off(name: str) -> ToolCall:
    return call(HANDOFF, agent_name=name, message="go on")


def own_questions(shell: Shell) -> list[Question]:
    return [item for item in open_questions(shell.state) if item.run_id == shell.id]


def planning(state: str) -> ToolCall:
    return call(UPDATE_PLAN, items=[{"text": "all", "state": state}])


CALLS = st.lists(
    st.one_of(
        st.builds(
            call, st.sampled_from(NAMES), st.none() | st.none() | st.just("does not fit"), input=st.just("do")
        ),
        st.sampled_from(["first", "last", "boss", "x"]).map(handing_off),
        st.sampled_from(["done", "wrong"]).map(planning),
    ),
    min_size=1,
    max_size=4,
)
FINAL = call(FINAL_ANSWER, n=1)
STOPS = ["end_turn", *["tool_calls"] * 6, "pause_turn", "stop_sequence"]
LAST_STOPS = ["max_tokens", "refusal", "guardrail", "context_overflow", "cancelled"]
PICK = st.integers(0, 2**16)
PART = st.floats(0, 1)
FLAG = st.booleans()
SIBLINGS = st.sampled_from(["cancel", "finish"])
COURSE = st.tuples(PICK, st.integers(0, 60))
"""How things go before anybody interferes."""
LIMITS = st.lists(casts.bounds, min_size=5, max_size=5)


def picked(options: list[Any], pick: int) -> Any:
    return options[pick % len(options)]


class Trees(RuleBasedStateMachine):
    """Lets anything happen, anywhere in the tree."""

    world: World
    root: Shell
    calm = 0
    """Of each kind of trouble, how much more there may be at the end: none."""

    def begun(self, made: tuple[World, Shell], course: tuple[int, int]) -> None:
        self.world, self.root = made
        state = self.root.state
        whole = session_of(state).limits if isinstance(state, AgentState) and state.session else state.limits
        self.limits = bounds_of(whole)
        self.past: list[tuple[Shell, Event]] = []
        self.said: list[str] = []
        self.chance = Random(0)
        self.root.wake()
        self.goes_on(*course)

    @property
    def begun_runs(self) -> list[Shell]:
        return [shell for shell in self.world.alive if shell not in self.world.new]

    # What comes back.

    @rule(seed=PICK, times=st.integers(1, 12))
    def the_world_goes_on(self, seed: int, times: int) -> None:
        """So many things that happen every day, of all that may happen next."""
        self.goes_on(seed, times)

    def goes_on(self, seed: int, times: int) -> None:
        chance = Random(seed)
        for _ in range(times):
            options = self.coming(lambda shell, _: self.worked(shell, chance))
            if options:
                chance.choice(options)()
            elif self.root.end is None and chance.random() < 0.8:
                self.somebody_comes()
            else:
                break
            self.nobody_is_stuck()
            self.all_together_keep_the_limits()

    def worked(self, shell: Shell, chance: Random) -> None:
        """A model answers as models do: mostly it calls tools, mostly such as there are."""
        assert isinstance(shell.state, AgentState)
        peers = [peer.name for peer in shell.state.peers]
        made = [call(chance.choice(NAMES), input="do it") for _ in range(chance.choice([1, 1, 2, 3]))]
        if peers and chance.random() < 0.3:
            made = [handing_off(chance.choice(peers))]
        if chance.random() < 0.1:
            made = []
            if shell.state.spec.output_schema is not None:
                return self.answered(shell, "")
        stop: Any = "tool_calls" if made else "end_turn"
        return self.world.answer(
            shell, made, stop=stop, text="so far", part=chance.random(), cached=chance.random()
        )

    @precondition(lambda self: bool(self.world.new))
    @rule(pick=PICK)
    def a_run_begins(self, pick: int) -> None:
        self.begins(picked(self.world.new, pick))

    @precondition(lambda self: bool(self.world.waiting))
    @rule(pick=PICK)
    def a_signal_arrives(self, pick: int) -> None:
        self.world.deliver(picked(self.world.waiting, pick))

    @precondition(lambda self: bool(flights(self.world, "model")))
    @rule(pick=PICK, calls=CALLS, stop=st.sampled_from(STOPS), part=PART, cached=PART)
    def a_model_answers(
        self, pick: int, calls: list[ToolCall], stop: Any, part: float, cached: float
    ) -> None:
        shell, _ = picked(flights(self.world, "model"), pick)
        self.world.answer(shell, calls, stop=stop, text="so far", part=part, cached=cached)

    @precondition(lambda self: bool(flights(self.world, "model")))
    @rule(pick=PICK, calls=CALLS, how=st.sampled_from(["cut", "empty", "answer", "answer"]))
    def a_model_answers_oddly(self, pick: int, calls: list[ToolCall], how: str) -> None:
        """A reply is cut in the midst of its last call, or empty, or has a final answer beside other calls."""
        shell, _ = picked(flights(self.world, "model"), pick)
        if how == "cut":
            cut = calls[-1].model_copy(update={"problem": CUT_CALL})
            self.world.answer(shell, [*calls[:-1], cut], stop="max_tokens")
        elif how == "empty":
            self.world.answer(shell, [], stop="end_turn")
        elif shell.state.spec.output_schema is not None:
            self.world.answer(shell, [*calls, FINAL], stop="tool_calls", output={"n": 1})

    @precondition(lambda self: self.world.ticks > 10 and bool(flights(self.world, "model")))
    @rule(pick=PICK, stop=st.sampled_from(LAST_STOPS), part=PART)
    def a_model_ends_badly(self, pick: int, stop: Any, part: float) -> None:
        shell, _ = picked(flights(self.world, "model"), pick)
        self.world.answer(shell, [], stop=stop, text="", part=part)

    @precondition(lambda self: self.world.ticks > 5 and bool(flights(self.world, "model")))
    @rule(pick=PICK, kind=st.sampled_from([*RULES, "stale", "cancelled"]), wasted=st.sampled_from([0, 0, 7]))
    def a_model_fails(self, pick: int, kind: str, wasted: int) -> None:
        shell, _ = picked(flights(self.world, "model"), pick)
        self.world.unknowable |= bool(wasted)  # what a cut call costs, nobody could have forbidden
        self.world.truth += Usage(output_tokens=wasted)
        self.world.truth_microusd += wasted
        failure = ModelFailure(
            kind=kind, message="no", wasted=Usage(output_tokens=wasted), wasted_microusd=wasted
        )
        shell.land("model", ModelFailed(failure=failure))

    @precondition(lambda self: bool(flights(self.world, "tool")))
    @rule(pick=PICK, error=FLAG, twice=FLAG)
    def a_tool_answers(self, pick: int, error: bool, twice: bool) -> None:
        shell, key = picked(flights(self.world, "tool"), pick)
        returned = CallReturned(result=result(key, is_error=error))
        self.past.append((shell, returned))
        shell.land(key, *[returned] * (1 + twice))

    @precondition(lambda self: bool(flights(self.world, "function")))
    @rule(pick=PICK, failed=FLAG)
    def a_function_answers(self, pick: int, failed: bool) -> None:
        shell, key = picked(flights(self.world, "function"), pick)
        reason: Any = "node_timeout" if failed else "end_turn"
        outcome = RunResult(agent=key, output="computed", stop_reason=reason, cost_microusd=0)
        shell.land(key, ChildEnded(key=key, outcome=outcome, at=self.world.now()))

    @precondition(lambda self: bool(self.past))
    @rule(pick=PICK)
    def something_is_heard_again(self, pick: int) -> None:
        shell, event = picked(self.past, pick)
        # A run that calls its children back folds what arrives only once all have come.
        if shell.end is None and event not in shell.events:
            before = shell.state
            assert shell.folded(event) == before

    @precondition(lambda self: any(shell.recalling for shell in self.begun_runs))
    @rule(pick=PICK)
    def a_grace_is_over(self, pick: int) -> None:
        shell = picked([shell for shell in self.begun_runs if shell.recalling], pick)
        # What is given up may have used more than anybody hears of.
        shell.lose_patience()

    # What people do.

    @rule(pick=PICK, allow=FLAG, known=FLAG, edit=FLAG)
    def somebody_decides(self, pick: int, allow: bool, known: bool, edit: bool) -> None:
        held = [
            (shell, c.call.id) for shell in self.agents for c in shell.state.step.calls if c.state == "asking"
        ]
        shell, call_id = picked(held, pick) if held and known else (self.root, "call-9-9")
        decided = ApprovalDecision(
            call_id=call_id, allow=allow, arguments={"n": 1} if edit and allow else None
        )
        shell.wake(ApprovalResolved(decision=decided))

    @property
    def agents(self) -> list[Any]:
        return [shell for shell in self.begun_runs if isinstance(shell.state, AgentState)]

    @precondition(lambda self: bool(self.agents))
    @rule(pick=PICK, steer=FLAG, answers=FLAG)
    def somebody_speaks(self, pick: int, steer: bool, answers: bool) -> None:
        shell = picked(self.agents, pick)
        # As the handlers address it, or late: to a question that is answered by then.
        asked = [item.call_id for item in own_questions(shell)]
        name = picked([*asked, "call-9-9"], pick) if answers else None
        self.speak(shell, steer=steer, name=name)
        if not shell.recalling and shell.end is None:
            left = [item.call_id for item in own_questions(shell)]
            assert set(asked) - set(left) <= {name}, "an answer reaches its own question alone"

    def speak(self, shell: Shell, *, steer: bool, name: str | None = None) -> None:
        """Send a message that no other is like, to a run that takes one."""
        if shell.end is not None or shell.state.ending is not None or shell.state.end is not None:
            return
        text = f"message {len(self.said) + len(self.world.accepted):03}"
        message = Message.user(text)
        self.world.accepted[text] = shell.id
        if shell.state.session:
            self.said.append(text)
            spoken = Utterance(id=text, message=message)
            shell.wake(Said(utterance=spoken, when_busy="steer" if steer else "queue", call_id=name))
        else:
            shell.wake(MessageSent(message=message, id=text if steer else None, call_id=name))

    @precondition(lambda self: bool(self.agents))
    @rule(pick=PICK, then=st.sampled_from(["refusal", "guardrail", "stopped", "deadline"]))
    def somebody_speaks_too_late(self, pick: int, then: Any) -> None:
        """A message comes right before an end that does not wait for it."""
        shell = picked(self.agents, pick)
        self.speak(shell, steer=True)
        if shell.end is None and then in ("stopped", "deadline"):
            shell.wake(EndRequested(reason=then))
        elif "model" in shell.flying:
            self.world.answer(shell, [], stop=then, text="no")

    @precondition(lambda self: bool(self.handing_over))
    @rule(pick=PICK, tool=st.sampled_from(["work", "pay", "nobody"]), speaks=FLAG, end=FLAG)
    def an_agent_hands_over_beside_work(self, pick: int, tool: str, speaks: bool, end: bool) -> None:
        """A call stands beside a handoff; a message, or the end, comes before the handoff takes effect."""
        shell, peer = picked(self.handing_over, pick)
        self.world.answer(shell, [call(tool, input="do"), handing_off(peer)], stop="tool_calls")
        if speaks:
            self.speak(shell, steer=True)
        if end and shell.end is None:
            shell.wake(EndRequested(reason="stopped"))

    @property
    def handing_over(self) -> list[tuple[Shell, str]]:
        """Agents whose model is asked, each with one that it may hand over to."""
        asked = [shell for shell, _ in flights(self.world, "model")]
        return [
            (shell, peer.name) for shell in asked for peer in shell.state.tree.peers if peer.barred is None
        ]

    @precondition(lambda self: bool(self.begun_runs))
    @rule(pick=PICK)
    def an_answer_goes_down(self, pick: int) -> None:
        """A run has handed on the answer to a question below: it no longer waits for it, and says so above."""
        shell = picked(self.begun_runs, pick)
        below = [item for item in open_questions(shell.state) if item.run_id != shell.id]
        if below and not shell.recalling:
            item = picked(below, pick)
            answer = RelayedAnswer(run_id=item.run_id, call_id=item.call_id, content="d", message_id="m")
            shell.apply(AnswerRelayed(answer=answer))
            assert item not in open_questions(shell.state)
            asking = self.world.shells[item.run_id]
            if asking.end is None and not asking.state.session:
                asking.wake(MessageSent(message=Message.user("there"), call_id=item.call_id))

    @rule()
    def somebody_pauses(self) -> None:
        self.root.wake(Paused())

    @rule()
    def somebody_resumes(self) -> None:
        self.root.wake(Resumed())

    @precondition(lambda self: self.world.ticks > 40)
    @rule(pick=PICK, reason=st.sampled_from(["stopped", "deadline", "cancelled"]), deep=FLAG)
    def somebody_ends_it(self, pick: int, reason: Any, deep: bool) -> None:
        shell = picked(self.begun_runs, pick) if deep and self.begun_runs else self.root
        if reason == "cancelled":
            shell.be_cancelled()
        else:
            shell.wake(EndRequested(reason=reason))

    @precondition(lambda self: self.world.ticks > 40 and len(self.world.alive) > 1)
    @rule(pick=PICK)
    def somebody_terminates_a_child(self, pick: int) -> None:
        children = [shell for shell in self.world.alive if shell.parent is not None]
        if children:
            self.world.terminate(picked(children, pick))

    @precondition(lambda self: bool(self.begun_runs))
    @rule(pick=PICK)
    def a_history_is_long(self, pick: int) -> None:
        picked(self.begun_runs, pick).renews = True

    # What always holds, beside what `world` checks.

    @invariant()
    def nobody_is_stuck(self) -> None:
        if hasattr(self, "world"):
            self.world.check_stuck()

    @invariant()
    def all_together_keep_the_limits(self) -> None:
        if hasattr(self, "world"):
            self.world.check_spent(self.limits)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for _ in range(4000):
            if not self.go_on():
                break
        else:
            raise AssertionError("the tree does not end")
        assert self.root.end is not None
        assert self.world.alive == []
        self.all_together_keep_the_limits()
        self.everything_was_counted_once()
        check_kept(self.world)

    def coming(self, answer: Callable[[Shell, str], None]) -> list[Callable[[], None]]:
        """All that may happen next by itself, when models answer like this."""
        world, chance = self.world, self.chance
        options: list[Callable[[], None]] = [partial(world.deliver, ends) for ends in world.waiting]
        options += [partial(self.begins, shell) for shell in world.new]
        options += [partial(answer, *one) for one in flights(world, "model")]
        options += [partial(self.returns, *one) for one in flights(world, "tool")]
        options += [partial(self.a_function_answers, chance.randrange(99), False)] * len(
            flights(world, "function")
        )
        options += [shell.lose_patience for shell in self.begun_runs if shell.recalling]
        return options

    def begins(self, shell: Shell) -> None:
        self.world.new.remove(shell)
        shell.wake()

    def returns(self, shell: Shell, key: str) -> None:
        shell.land(key, CallReturned(result=result(key)))

    def go_on(self) -> bool:
        """One thing that happens in a friendly world; False when nothing is left to happen."""
        options = self.coming(self.answered)
        if options:
            self.chance.choice(options)()
        elif self.root.end is None:
            self.somebody_comes()
        else:
            return False
        return True

    def answered(self, shell: Shell, _: str) -> None:
        if isinstance(shell.state, AgentState) and shell.state.spec.output_schema is not None:
            return self.world.answer(shell, [FINAL], stop="tool_calls", part=0.1, output={"n": 1})
        return self.world.answer(shell, [], stop="end_turn", text="done", part=0.1)

    def somebody_comes(self) -> None:
        """People look at the root, and do what it says that it waits for."""
        status = self.root.state
        for one in waiting_of(status):
            below = self.world.shells[one.run_id]
            if isinstance(one, Approval):
                return below.wake(
                    ApprovalResolved(decision=ApprovalDecision(call_id=one.call_id, allow=True))
                )
            if isinstance(one, Question):
                message = Message.user("yes")
                if below.state.session:
                    self.said.append(f"answer {len(self.said)}")
                    spoken = Utterance(id=self.said[-1], message=message)
                    return below.wake(Said(utterance=spoken, call_id=one.call_id))
                return below.wake(MessageSent(message=message, call_id=one.call_id))
        parked = isinstance(status, AgentState) and status.parking.parked is not None
        if status.paused or parked or any(isinstance(one, Parked) for one in waiting_of(status)):
            return self.root.wake(Resumed())
        return self.finally_closed()

    def finally_closed(self) -> None:
        raise AssertionError("nothing is under way, and nobody can do anything")

    def everything_was_counted_once(self) -> None:
        root = self.root.state
        if root.ledger.usage.estimated or self.world.unknowable or self.world.lost:
            return
        assert root.ledger.usage == self.world.truth.model_copy(update={"estimated": False})
        assert root.ledger.cost_microusd == self.world.truth_microusd


class Families(Trees):
    """An agent that calls agents, which call agents."""

    @initialize(limits=LIMITS, request=casts.bounds, course=COURSE, planning=FLAG, park=FLAG)
    def start(self, limits: Any, request: Any, course: Any, planning: bool, park: bool) -> None:
        self.begun(casts.world_of(casts.family(limits, planning=planning, park=park), request), course)


class Swarms(Trees):
    @initialize(limits=LIMITS, request=casts.bounds, course=COURSE)
    def start(self, limits: Any, request: Any, course: Any) -> None:
        self.begun(casts.world_of(casts.swarm(limits), request), course)


class Graphs(Trees):
    @initialize(limits=LIMITS, request=casts.bounds, course=COURSE, siblings=SIBLINGS)
    def start(self, limits: Any, request: Any, course: Any, siblings: str) -> None:
        self.begun(casts.world_of(casts.graph(limits, siblings), request), course)


class Sessions(Trees):
    """A session with an agent that calls agents."""

    @initialize(limits=LIMITS, request=casts.bounds, course=COURSE, park=FLAG)
    def start(self, limits: Any, request: Any, course: Any, park: bool) -> None:
        self.begun(casts.world_of(casts.family(limits, park=park), request, session=True), course)

    @rule(exact=FLAG, reason=st.sampled_from(["stopped", "deadline"]))
    def a_turn_is_interrupted(self, exact: bool, reason: Any) -> None:
        turn = session_of(self.root.state).turn - exact
        self.root.wake(TurnInterrupted(turn=turn if exact else None, reason=reason))

    @rule()
    def time_passes(self) -> None:
        self.root.wake(IdleChecked(at=self.world.now()))

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        if not hasattr(self, "world"):
            return
        session = session_of(self.root.state)
        queued = [one.id for one in (*session.unread, *session.queue)]
        answered = [one for turn in session.answered for one in turn.ids]
        # While it calls back what is in flight, nobody looks at what has come in.
        coming = [event.utterance.id for event in self.root.events if isinstance(event, Said)]
        assert sorted([*session.ids, *queued, *answered, *coming]) == sorted(self.said)
        for one in (one for one in self.said if one not in coming):
            replied = reply_to(self.root.state, one) is not None
            assert replied != is_pending(self.root.state, one)

    def finally_closed(self) -> None:
        if len(self.said) > 6:
            return self.root.wake(EndRequested(reason="stopped"))
        self.said.append(f"message {len(self.said)}")
        spoken = Utterance(id=self.said[-1], message=Message.user("one more thing"))
        return self.root.wake(Said(utterance=spoken))


TestFamilies: Any = Families.TestCase
TestSwarms: Any = Swarms.TestCase
TestGraphs: Any = Graphs.TestCase
TestSessions: Any = Sessions.TestCase
for _case in (TestFamilies, TestSwarms, TestGraphs, TestSessions):
    _case.settings = examples(60, stateful_step_count=40)
del _case
