"""Scheduler of a graph: which nodes run next, and when it is over. The rules stand in `joins`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar, Final, cast

from pydantic import TypeAdapter, ValidationError

from perdure.graph import GraphCode, GraphState, as_text
from perdure.messages import Message, Part, Text
from perdure.scheduling import Notes, Over, Start
from perdure.texts import describe_error, fix_surrogates, mask_secrets, truncate_middle
from perdure.wire.results import Failure, NodeResult
from perdure.wire.spec import EdgeSpec, GraphSpec, NodeSpec

from .joins import (
    Arrival,
    Exchange,
    GraphProgress,
    Visit,
    add_arrival,
    arrivals_at,
    has_cycle,
    is_stuck,
    outgoing,
    record_visit,
    unmet,
)

MOST_INPUT_BYTES: Final = 16 * 1024
"""Most bytes of inputs in an agent's prompt. Longer ones stand before it, in messages that can be cut and read on."""
_PROMPT = TypeAdapter[str | list[Part]](str | list[Part])


class MissingCode(LookupError):
    """The worker's code lacks a function that the run's graph names.

    It fails the workflow task, not the run: a worker with the right code goes on with it.
    """


def graph_state(progress: GraphProgress) -> GraphState:
    """Return the state that conditions and input builders see."""
    return GraphState(
        task=_text(progress.task),
        results=MappingProxyType(progress.results),
        visits=MappingProxyType(progress.visits),
    )


@dataclass(frozen=True)
class GraphScheduler:
    """Scheduler of one graph, with the functions that its conditions and inputs name."""

    spec: GraphSpec
    code: GraphCode = GraphCode()  # noqa: RUF009 - a frozen value
    progress_type: ClassVar[Any] = GraphProgress
    runs_alone: ClassVar[bool] = False

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> GraphProgress:
        """Return the progress of a run that has just been given its task."""
        return GraphProgress(
            task=task, visits={node.name: 0 for node in self.spec.nodes}, ready=self.spec.entries
        )

    def startable(self, progress: GraphProgress) -> tuple[Start, ...]:
        """Return retries first, then nodes in the order in which their joins were met.

        Nothing, when an input builder fails; then `over` says so.
        """
        starts = _batch(progress, self.spec, self.code)
        return () if isinstance(starts, Failure) else starts

    def record_start(self, progress: GraphProgress, starts: Sequence[Start]) -> GraphProgress:
        """Return the progress once these nodes are running."""
        return _record_start(progress, self.spec, starts)

    def record_end(self, progress: GraphProgress, result: NodeResult) -> GraphProgress:
        """Return the progress after a node ended; a result of no running node, or a repeated one, is ignored."""
        return _record_end(progress, self.spec, self.code, result)

    def over(self, progress: GraphProgress) -> Over | None:
        """Return the end, or None while something runs or can start.

        With siblings to be cancelled a failed graph is over at once, whatever still runs.
        """
        return _over(progress, self.spec, self.code)

    def partial(self, progress: GraphProgress) -> Any:
        """Return the outputs of the nodes that lead nowhere, or the newest output."""
        return _partial(progress, self.spec)

    def notes(self, progress: GraphProgress) -> Notes:
        """Return the nodes that never ran, and why."""
        return Notes(unmet=unmet(progress, self.spec))


def _record_start(progress: GraphProgress, spec: GraphSpec, starts: Sequence[Start]) -> GraphProgress:
    for start in starts:
        retry = next((visit for visit in progress.retries if visit.key == start.key), None)
        visit = retry or Visit(
            node=start.node,
            number=start.visit,
            prompt=start.prompt,
            inputs=dict(start.inputs),
            given=_newest_given(start.history),
        )
        progress = replace(
            # A retry goes on with what its first attempt consumed.
            record_visit(progress, spec, visit) if retry is None else progress,
            retries=tuple(waiting for waiting in progress.retries if waiting != retry),
            running=(*progress.running, visit),
            executions=progress.executions + 1,
        )
    return progress


def _batch(progress: GraphProgress, spec: GraphSpec, code: GraphCode) -> tuple[Start, ...] | Failure:
    """Return everything that may start now, or the failure of an input builder."""
    starts: list[Start] = []
    while (waiting := _next(progress, spec)) is not None:
        visit = waiting if isinstance(waiting, Visit) else _visit(progress, spec, code, waiting)
        if isinstance(visit, Failure):
            return visit
        start = _start(progress, spec, visit)
        starts.append(start)
        # Each start uses up concurrency and executions that the next one must see.
        progress = _record_start(progress, spec, [start])
    return tuple(starts)


def _fail_if_unaskable(progress: GraphProgress, spec: GraphSpec, code: GraphCode) -> GraphProgress:
    """Return the progress, failed when the input of a node to start cannot be built."""
    starts = _batch(progress, spec, code)
    if isinstance(starts, Failure):
        return replace(progress, end=Over(stop_reason="error", failure=starts))
    return progress


def _next(progress: GraphProgress, spec: GraphSpec) -> Visit | str | None:
    """Return a visit to retry, or else a node to visit, or None when nothing may start now."""
    if progress.end is not None or len(progress.running) >= spec.concurrency or _is_used_up(progress, spec):
        return None
    if progress.retries:
        return progress.retries[0]
    # A node that is ready again waits for its own running visit: it never overlaps itself.
    running = [visit.node for visit in progress.running]
    return next((name for name in progress.ready if name not in running), None)


def _is_used_up(progress: GraphProgress, spec: GraphSpec) -> bool:
    most = spec.limits.max_node_executions
    return most is not None and progress.executions >= most


def _start(progress: GraphProgress, spec: GraphSpec, visit: Visit) -> Start:
    node = spec.node(visit.node)
    return Start(
        key=visit.key,
        node=node.name,
        kind=node.kind,
        member=node.member,
        prompt=visit.prompt,
        timeout=_shorter(node.timeout, spec.limits.node_timeout),
        history=(*_history(progress.memory.get(node.name, ())), *visit.given),
        visit=visit.number,
        retry_of=visit.first_key if visit.attempt else "",
        attempt=visit.attempt + 1,
        inputs=visit.inputs,
    )


def _shorter(first: timedelta | None, second: timedelta | None) -> timedelta | None:
    return min((span for span in (first, second) if span is not None), default=None)


def _history(exchanges: tuple[Exchange, ...]) -> tuple[Message, ...]:
    return tuple(
        message
        for exchange in exchanges
        for message in (
            *exchange.given,
            Message.user(exchange.prompt),
            Message(role="assistant", parts=[Text(text=exchange.answer)]),
        )
    )


def _newest_given(history: Sequence[Message]) -> tuple[Message, ...]:
    """Return the inputs that stand last in the history: those of the visit that it leads to."""
    count = 0
    while count < len(history) and history[-1 - count].answer_of:
        count += 1
    return tuple(history[len(history) - count :])


def _given_apart(arrivals: dict[str, Arrival]) -> tuple[Message, ...]:
    """Return each input as a message, if all together are too long for a prompt."""
    texts = {source: _input_text(source, arrival) for source, arrival in arrivals.items()}
    if sum(len(text.encode(errors="replace")) for text in texts.values()) <= MOST_INPUT_BYTES:
        return ()
    return tuple(
        Message(
            role="user",
            parts=[Text(text=text)],
            # The name by which `read_result` reads on: the visit that it comes from.
            answer_of=f"{source}-{arrivals[source].ancestry[source]}",
        )
        for source, text in texts.items()
    )


def _input_text(source: str, arrival: Arrival) -> str:
    return f"From {source}:\n{as_text(arrival.output)}"


def _visit(progress: GraphProgress, spec: GraphSpec, code: GraphCode, name: str) -> Visit | Failure:
    """Return the node's next visit, or the failure of its input builder."""
    node, arrivals = spec.node(name), arrivals_at(progress, spec, name)
    apart = _given_apart(arrivals) if node.input is None and node.kind == "agent" else ()
    prompt = (
        _default_prompt(progress.task, arrivals, apart)
        if node.input is None
        else _build_prompt(progress, code, node)
    )
    if isinstance(prompt, Failure):
        return prompt
    inputs = {source: arrival.output for source, arrival in arrivals.items()}
    return Visit(
        node=name,
        number=progress.visits[name] + 1,
        prompt=prompt,
        inputs=inputs if node.kind == "function" else {},
        given=apart,
    )


def _build_prompt(progress: GraphProgress, code: GraphCode, node: NodeSpec) -> str | list[Part] | Failure:
    """Return the prompt of the node's own input builder, or the failure."""
    what = f"the input {node.input!r} of node {node.name!r}"
    builder = code.inputs.get(node.name)
    if builder is None:
        raise MissingCode(
            f"{what} is not in the graph's code here: serve the run with the code it began with"
        )
    try:
        prompt = _PROMPT.validate_python(builder(graph_state(progress)))
    except ValidationError:
        return Failure(kind="input", message=f"{what} must give text or a list of parts")
    except BaseException as error:
        # BaseException, because a SystemExit in the user's code would end the worker.
        return Failure(kind="input", message=f"{what} raised {_describe(error)}")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        return Failure(kind="input", message=f"{what} gave nothing to ask")
    if isinstance(prompt, str) and fix_surrogates(prompt) != prompt:
        return Failure(
            kind="input", message=f"{what} gave text with half characters, which cannot be written"
        )
    return prompt


def _describe(error: BaseException) -> str:
    """Return the name and message of an error of the user's code, masked and shortened. Never raises."""
    text = f"{type(error).__name__}: {describe_error(error)}"
    return truncate_middle(mask_secrets(fix_surrogates(text)), 1000)


def _text(prompt: str | list[Part]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "".join(part.text for part in prompt if isinstance(part, Text))


def _default_prompt(
    task: str | list[Part], arrivals: dict[str, Arrival], given: Sequence[Message]
) -> str | list[Part]:
    """Return the task, followed by the outputs of the nodes that led here, if any did; or where these stand."""
    if not arrivals:
        return task
    outputs = [_input_text(source, arrival) for source, arrival in arrivals.items()]
    inputs = ["Inputs from earlier nodes:", *outputs]
    if given:
        names = ", ".join(message.answer_of for message in given)
        inputs = [f"Inputs from earlier nodes stand before this message: {names}"]
    text = "\n\n".join([f"Original task: {_text(task)}", *inputs])
    if isinstance(task, str):
        return text
    return [*(part for part in task if not isinstance(part, Text)), Text(text=text)]


def _record_end(
    progress: GraphProgress, spec: GraphSpec, code: GraphCode, result: NodeResult
) -> GraphProgress:
    visit = next((visit for visit in progress.running if visit.key == result.key), None)
    if visit is None:
        return progress
    # Before the result counts: an input that could not be built must stay a failure, whatever comes.
    progress = _fail_if_unaskable(progress, spec, code)
    progress = replace(progress, running=tuple(run for run in progress.running if run.key != visit.key))
    if not _has_failed(result):
        progress = _remember(_keep_output(progress, spec, result), spec, visit, result)
        return progress if progress.end is not None else _follow_edges(progress, spec, code, result)
    node = spec.node(visit.node)
    if progress.end is None and visit.attempt < node.retries:
        return replace(progress, retries=(*progress.retries, replace(visit, attempt=visit.attempt + 1)))
    if progress.end is None and node.on_error == "skip":
        skipped = result.model_copy(update={"state": "skipped"})
        return replace(progress, results={**progress.results, node.name: skipped})
    progress = replace(progress, results={**progress.results, node.name: result})
    return progress if progress.end is not None else replace(progress, end=_failure_of(result))


def _has_failed(result: NodeResult) -> bool:
    return result.state in {"failed", "cancelled"} or result.stop_reason == "node_timeout"


def _failure_of(result: NodeResult) -> Over:
    if result.stop_reason == "node_timeout":
        return Over(stop_reason="node_timeout")
    error = result.error or Failure(kind=result.state, message="it does not say why")
    failure = error.model_copy(update={"message": f"node {result.node!r} {result.state}: {error.message}"})
    return Over(stop_reason="error", failure=failure)


def _keep_output(progress: GraphProgress, spec: GraphSpec, result: NodeResult) -> GraphProgress:
    results = {**progress.results, result.node: result}
    outputs = progress.outputs
    if not outgoing(spec, result.node):
        outputs = {**outputs, result.node: result.output}
    return replace(progress, results=results, outputs=outputs, latest=result.output)


def _remember(progress: GraphProgress, spec: GraphSpec, visit: Visit, result: NodeResult) -> GraphProgress:
    """Return the progress with the visit in the agent's memory, where its later visits remember it."""
    answer = as_text(result.output)
    remembers = spec.node(visit.node).kind == "agent" and not spec.reset_on_revisit and has_cycle(spec)
    # An empty answer is left out, because no provider takes an empty message.
    if not remembers or not answer.strip():
        return progress
    exchange = Exchange(prompt=visit.prompt, answer=answer, given=visit.given)
    earlier = progress.memory.get(visit.node, ())
    return replace(progress, memory={**progress.memory, visit.node: (*earlier, exchange)})


def _follow_edges(
    progress: GraphProgress, spec: GraphSpec, code: GraphCode, result: NodeResult
) -> GraphProgress:
    """Return the progress after the node's output travelled along each edge whose condition holds."""
    # All conditions see the same state, so that their order does not matter.
    state = graph_state(progress)
    for edge in outgoing(spec, result.node):
        taken = _is_taken(edge, code, state)
        if isinstance(taken, Failure):
            return replace(progress, end=Over(stop_reason="error", failure=taken))
        if taken:
            progress = add_arrival(progress, spec, edge, result.output)
    return progress


def _is_taken(edge: EdgeSpec, code: GraphCode, state: GraphState) -> bool | Failure:
    if edge.when is None:
        return True
    what = f"the condition {edge.when!r} of edge {edge.source!r} -> {edge.target!r}"
    condition = code.conditions.get((edge.source, edge.target))
    if condition is None:
        raise MissingCode(
            f"{what} is not in the graph's code here: serve the run with the code it began with"
        )
    try:
        taken = cast("object", condition(state))
    except BaseException as error:
        # BaseException, because a SystemExit in the user's code would end the worker.
        return Failure(kind="condition", message=f"{what} raised {_describe(error)}")
    if isinstance(taken, bool):
        return taken
    return Failure(kind="condition", message=f"{what} must give True or False, not a {type(taken).__name__}")


def _over(progress: GraphProgress, spec: GraphSpec, code: GraphCode) -> Over | None:
    progress = _fail_if_unaskable(progress, spec, code)
    cancel = progress.end is not None and spec.siblings == "cancel"
    if progress.running and not cancel:
        return None
    output = _partial(progress, spec)
    if progress.end is not None:
        return replace(progress.end, output=output, cancel_running=cancel)
    if progress.retries or progress.ready:
        return Over(stop_reason="max_node_executions", output=output) if _is_used_up(progress, spec) else None
    return Over(stop_reason="unmet_join" if is_stuck(progress, spec) else "end_turn", output=output)


def _partial(progress: GraphProgress, spec: GraphSpec) -> Any:
    names = [node.name for node in spec.nodes if node.name in progress.outputs]
    match names:
        case []:
            return progress.latest
        case [name]:
            return progress.outputs[name]
        case _:
            return {name: progress.outputs[name] for name in names}
