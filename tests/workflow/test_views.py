"""What a model sees: the request in hand, what nobody has read, and results that fit together."""

from temporalio.api.history.v1 import HistoryEvent

from perdure import Agent, Edge, Graph, GraphLimits, SlidingWindow, Summary, tool
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, fails, says
from tests.conftest import Gate, Serve


@tool
async def count_shelf(shelf: int) -> str:
    """Count the boxes on a shelf."""
    return f"shelf {shelf}: 3 boxes"


def shown(request: ModelRequest) -> list[str]:
    return [message.text for message in request.messages]


async def test_turns_request_stays_visible(serve: Serve) -> None:
    """In each turn of a session with a short window, the model sees the turn's own request at every step."""
    blind: list[int] = []
    firsts: list[str] = []

    def script(request: ModelRequest) -> Line:
        turn = (request.step - 1) // 10 + 1
        if not any(f"QUESTION {turn}" in text for text in shown(request)):
            blind.append(request.step)
        firsts.append(request.messages[0].role)
        return says(f"answer {turn}") if request.step % 10 == 0 else calls("count_shelf", shelf=request.step)

    depot = Agent(name="depot", model="scripted:x", tools=[count_shelf], context=SlidingWindow(messages=6))
    async with serve(depot, models={"scripted": ScriptedModel(script)}) as client:
        session = await client.session("depot", agent="depot")
        for turn in (1, 2, 3):
            reply = await session.say(f"QUESTION {turn}")
            assert reply.text == f"answer {turn}"
    assert blind == []
    assert set(firsts) == {"user"}


async def test_visits_request_stays_visible(serve: Serve) -> None:
    """An agent that a graph visits again sees the task of this visit, though its earlier visits fill the window."""
    visits: list[list[bool]] = []

    def writer(request: ModelRequest) -> Line:
        if request.step == 1:
            visits.append([])
        words = "FIRST TASK" if len(visits) == 1 else "FROM THE CRITIC"
        visits[-1].append(any(words in text for text in shown(request)))
        return says("a draft") if request.step == 8 else calls("count_shelf", shelf=request.step)

    made = Graph(
        name="desk",
        nodes={
            "writer": Agent(
                name="writer", model="w:x", tools=[count_shelf], context=SlidingWindow(messages=6)
            ),
            "critic": Agent(name="critic", model="c:x"),
        },
        edges=[Edge("writer", "critic"), Edge("critic", "writer", lambda state: state.visits["writer"] < 2)],
        entry="writer",
        limits=GraphLimits(max_node_executions=4),
    )
    critic = ScriptedModel(lambda _: says("FROM THE CRITIC: count once more"))
    async with serve(made, models={"w": ScriptedModel(writer), "c": critic}) as client:
        await client.run("desk", "FIRST TASK")
    assert visits == [[True] * 8, [True] * 8]


async def test_unread_messages_outlive_an_overflow(serve: Serve) -> None:
    """Messages that people send in mid-run are read, though the call that was to read them first overflows."""
    gate = Gate()
    seen: list[list[str]] = []

    async def script(request: ModelRequest) -> Line:
        if request.step <= 4:
            return calls("count_shelf", shelf=request.step)
        if request.step == 5 and not gate.opened.is_set():
            await gate.wait()
            return calls("count_shelf", shelf=5)
        seen.append([text for text in shown(request) if text.startswith("also")])
        return fails("context_overflow") if len(seen) == 1 else says("read")

    depot = Agent(name="depot", model="scripted:x", tools=[count_shelf])
    async with serve(depot, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("depot", "count")
        await gate.reached.wait()
        for number in range(5):
            await run.send(f"also {number}")
        gate.opened.set()
        result = await run.result()
    assert result.output == "read"
    assert seen == [[f"also {number}" for number in range(5)]] * 2


async def test_summary_is_in_history_once(serve: Serve) -> None:
    """The text of a summary stands in history where it was written, and no later model call repeats it."""
    words = "THE-SUMMARY " * 20

    def script(request: ModelRequest) -> Line:
        if not request.tools:
            return says(words)
        if request.step > 12:
            return says(str(any(words.strip() in text for text in shown(request))))
        return calls("count_shelf", shelf=request.step)

    depot = Agent(
        name="depot",
        model="scripted:x",
        tools=[count_shelf],
        context=Summary(messages=14, tokens=None, keep=0.3),
    )
    async with serve(depot, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("depot", "count")
        result = await run.result()
        described = await run.describe()
        handle = client.temporal.get_workflow_handle(run.id, run_id=described.run_id)
        events = (await handle.fetch_history()).events
    assert result.output == "True", "the model read it at its last step"
    written = [event for event in events if words.strip().encode() in event.SerializeToString()]
    asked = [event for event in events if _asks_for_summary(event)]
    assert len(written) == len(asked) > 0


def _asks_for_summary(event: HistoryEvent) -> bool:
    scheduled = event.activity_task_scheduled_event_attributes
    return any(b'"summarize":' in payload.data for payload in scheduled.input.payloads)
