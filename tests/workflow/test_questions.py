"""Questions to people: an answer reaches the question that it is for, in every kind of run, and from its root."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowUpdateFailedError

from perdure import Agent, Graph, InvalidRequest, Limits, RunEnded, RunNotFound, Swarm, ask_person, tool
from perdure.members import Member
from perdure.messages import Image, Text
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, calls, says
from perdure.wire.results import Question, Receipt
from perdure.workers.dev.server import DevServer
from tests.conftest import Gate, Serve, check_rows, until_queried, until_status
from tests.pictures import PNG
from tests.serving import running
from tests.workflow.test_history import history_sizes

ROOMS = ("hall", "roof")


def _answers(request: ModelRequest) -> str:
    """The newest results, as "hall: white; roof: red"."""
    asked = {call.id: call for message in request.messages for call in message.tool_calls}
    return "; ".join(
        f"{str(asked[result.call_id].arguments.get('question', result.name)).split()[-1]}: {result.text}"
        for result in request.messages[-1].tool_results
    )


def _script(request: ModelRequest) -> Any:
    match request.config.model:
        case "painter" if request.step == 1:
            return [calls("ask_person", question=f"Which colour has the {room}") for room in ROOMS]
        case "asker" if request.step == 1:
            room = request.messages[-1].text.split()[-1]
            return calls("ask_person", question=f"Which colour has the {room}")
        case "hall" | "roof" as room if request.step == 1:
            return calls("ask_person", question=f"Which colour has the {room}")
        case "boss" if request.step == 1:
            return calls("painter", input="Paint.")
        case "foreman" if request.step == 1:
            return [calls("asker", input=f"Paint the {room}") for room in ROOMS]
        case "boss" | "foreman":
            return says("; ".join(result.text for result in request.messages[-1].tool_results))
        case _:
            return says(_answers(request))


def _agent(name: str, *tools: Any) -> Agent:
    return Agent(name=name, model=f"scripted:{name}", description="Paints.", tools=tools or [ask_person])


PAINTER, ASKER = _agent("painter"), _agent("asker")
BOSS, FOREMAN = _agent("boss", PAINTER.as_tool()), _agent("foreman", ASKER.as_tool())
AGENTS: list[Member] = [
    PAINTER,
    BOSS,
    FOREMAN,
    Swarm(name="swarm", agents=[PAINTER, _agent("other")]),
    Graph(
        name="graph",
        nodes={room: Agent(name=room, model=f"scripted:{room}", tools=[ask_person]) for room in ROOMS},
        edges=[],
        entry=list(ROOMS),
    ),
    Graph(name="nested", nodes={"team": Swarm(name="inner", agents=[PAINTER])}, edges=[], entry="team"),
]


async def open_questions(run: Run, count: int) -> list[Question]:
    """The questions of the tree, in the order of the rooms, once so many are open."""
    found: list[Question] = []

    async def are_there() -> bool:
        with suppress(RunNotFound, InvalidRequest):
            found[:] = [item for item in (await run.status()).waiting if isinstance(item, Question)]
        return len(found) == count

    await until_queried(are_there)
    return sorted(found, key=lambda item: item.text)


Answer = Callable[..., Awaitable[Receipt]]


async def _answer_all(run: Run, answer: Answer) -> None:
    """Answer both questions, and try everything that is no answer to one of them."""
    hall, roof = await open_questions(run, 2)
    with pytest.raises(InvalidRequest, match="2 questions wait: say which") as several:
        await answer("white")
    for question in (hall, roof):
        assert f'{question.run_id}/{question.call_id} "{question.text}"' in str(several.value)
    for name in ("call-9-9", f"{roof.run_id}/call-9-9", f"{run.id}/~nobody-1/{roof.call_id}"):
        with pytest.raises(InvalidRequest, match=r"no question .* waits") as unknown:
            await answer("red", call_id=name)
        assert hall.text in str(unknown.value)
    receipt = await answer("red", call_id=f"{roof.run_id}/{roof.call_id}")
    assert (receipt.call_id, receipt.run_id, receipt.repeated) == (roof.call_id, roof.run_id, False)
    assert hall.text in receipt.words
    assert roof.text not in receipt.words
    again = await answer("red", call_id=roof)
    assert (again.call_id, again.run_id, again.repeated) == (roof.call_id, roof.run_id, True)
    with pytest.raises(InvalidRequest, match="answered otherwise"):
        await answer("blue", call_id=roof)
    assert [item.call_id for item in await open_questions(run, 1)] == [hall.call_id]
    assert (await answer("white")).call_id == hall.call_id


async def _run(client: Client, name: str) -> None:
    run = await client.start(name, "Paint.")
    await _answer_all(run, run.send)
    output = (await run.result()).output
    expected: Any = "hall: white; roof: red"
    if name == "graph":
        expected = {"hall": "hall: white", "roof": "roof: red"}
    assert output == expected
    with pytest.raises(RunEnded):
        await run.send("late", call_id="call-1-1")


async def test_answers_reach_their_questions(serve: Serve) -> None:
    """Named, unnamed, unknown, late and repeated answers at the root of every kind of run."""
    names = [member.name for member in AGENTS]
    async with serve(*AGENTS, models={"scripted": ScriptedModel(_script)}) as client:
        await check_rows({name: _run(client, name) for name in names})


async def _session(client: Client, name: str) -> None:
    session = await client.session(f"asked-{name}", agent=name)
    saying = [asyncio.create_task(session.say("Paint.", id="task"))]
    hall, roof = await open_questions(session.run, 2)
    with pytest.raises(InvalidRequest, match="2 questions wait: say which"):
        await session.say("white")
    with pytest.raises(InvalidRequest, match="no question 'call-9-9' waits"):
        await session.say("white", call_id="call-9-9")
    saying.append(asyncio.create_task(session.say("red", id="roof", call_id=roof)))
    await open_questions(session.run, 1)
    with pytest.raises(InvalidRequest, match="answered otherwise"):
        await session.say("blue", call_id=roof)
    # The same message, and the same answer in another message: neither is an answer to what is still open.
    again = [session.say("red", id=message_id, call_id=roof) for message_id in ("roof", "roof again")]
    saying += [asyncio.create_task(saying_again) for saying_again in again]
    assert (await session.run.send("red", call_id=roof)).repeated
    assert await open_questions(session.run, 1) == [hall]
    saying.append(asyncio.create_task(session.say("white", id="hall")))
    replies = await asyncio.gather(*saying)
    assert {(reply.turn, reply.output == replies[0].output) for reply in replies} == {(1, True)}
    assert "hall: white" in str(replies[0].output)
    assert "roof: red" in str(replies[0].output)
    with pytest.raises(InvalidRequest, match=r"is over|no question"):
        await session.say("red", call_id=roof)
    status = await session.status()
    assert (status.turn, status.status, status.queued) == (1, "idle", 0)


async def test_answers_belong_to_the_turn_that_asks(serve: Serve) -> None:
    """In a session, with an agent or a team, an answer is no turn of its own: its reply is that of the turn."""
    names = [member.name for member in AGENTS]
    async with serve(*AGENTS, models={"scripted": ScriptedModel(_script)}) as client:
        await check_rows({name: _session(client, name) for name in names})


async def _ambiguous(client: Client) -> None:
    """The same call id waits in two runs: it is refused until the run is named too."""
    run = await client.start("foreman", "Paint.")
    hall, roof = await open_questions(run, 2)
    assert hall.call_id == roof.call_id
    with pytest.raises(InvalidRequest, match="2 questions 'call-1-1' wait in different runs"):
        await run.send("red", call_id=hall.call_id)
    # Any client: the fields apart, or both names in one.
    await run.handle.execute_update("send", {"call_id": "call-1-1", "run_id": roof.run_id, "text": "red"})
    await run.handle.execute_update("send", {"call_id": f"{hall.run_id}/call-1-1", "text": "white"})
    assert (await run.result()).output == "hall: white; roof: red"


async def _directly(client: Client) -> None:
    """An answer given to the run below itself; the root refuses another one, and knows what is still open."""
    run = await client.start("foreman", "Paint.")
    _hall, roof = await open_questions(run, 2)
    await client.get(roof.run_id).send("red")
    with pytest.raises(InvalidRequest, match=r"answered otherwise|no question|goes on below|is over"):
        await run.send("blue", call_id=roof)
    await open_questions(run, 1)
    await run.send("white")
    assert (await run.result()).output == "hall: white; roof: red"


async def _refused_fields(client: Client) -> None:
    """A misspelt name is no unnamed answer."""
    run = await client.start("asker", "Paint the hall")
    [hall] = await open_questions(run, 1)
    for wrong in (
        {"text": "white", "callid": hall.call_id},
        {"text": "white", "call_id": 7},
        {"text": "white", "call_id": f"another/{hall.call_id}"},
        {"text": "white", "call_id": f"{run.id}/{hall.call_id}", "run_id": "another"},
        {"call_id": hall.call_id},
        {"text": " ", "call_id": hall.call_id},
    ):
        with pytest.raises(WorkflowUpdateFailedError):
            await run.handle.execute_update("send", wrong)
    assert await open_questions(run, 1) == [hall]
    await run.send([Text(text="see"), Image(data=PNG)], call_id=hall)
    assert "see" in str((await run.result()).output)


async def _repeated_under_an_id(client: Client) -> None:
    """The same message again, under its id, with the next question open: it changes nothing."""
    run = await client.start("painter", "Paint.")
    hall, roof = await open_questions(run, 2)
    assert not (await run.send("red", id="m1", call_id=roof)).repeated
    assert (await run.send("red", id="m1", call_id=roof)).repeated
    assert await open_questions(run, 1) == [hall]
    assert (await run.send("white", id="m2")).call_id == hall.call_id
    assert (await run.result()).output == "hall: white; roof: red"


async def _in_the_ui(client: Client) -> None:
    """The page in the Temporal UI has the argument that answers each question, at the root too."""
    run = await client.start("foreman", "Paint.")
    for question in await open_questions(run, 2):
        for run_id, name in ((run.id, f'"run_id": "{question.run_id}", '), (question.run_id, "")):
            handle = client.get(run_id).handle
            metadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
            expected = f'update `send`: `{{{name}"call_id": "{question.call_id}", "text": "..."}}`'
            assert expected in metadata.current_details
    await run.cancel()


async def test_addresses_of_answers(serve: Serve) -> None:
    """Equal call ids, answers past the root, misspelt names, ids of messages, and the page in the UI."""
    rows = {
        "ambiguous": _ambiguous,
        "directly": _directly,
        "fields": _refused_fields,
        "ids": _repeated_under_an_id,
        "ui": _in_the_ui,
    }
    async with serve(*AGENTS, models={"scripted": ScriptedModel(_script)}) as client:
        await check_rows({name: row(client) for name, row in rows.items()})


async def test_message_meets_no_later_question(serve: Serve) -> None:
    """A message that comes before the question steers the agent: it cannot be the answer to it."""
    gate = Gate()

    @tool
    async def look() -> str:
        """Look."""
        await gate.wait()
        return "seen"

    def script(request: ModelRequest) -> Any:
        match request.step:
            case 1:
                return calls("look")
            case 2:
                return calls("ask_person", question="Which?")
            case _:
                return says(_answers(request))

    agent = Agent(name="a", model="scripted:a", tools=[look, ask_person])
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("a", "go")
        await gate.reached.wait()
        receipt = await run.send("be quick")
        assert (receipt.unread, receipt.call_id) == (1, "")
        gate.opened.set()
        await open_questions(run, 1)
        await run.send("the red one")
        assert (await run.result()).output == "Which?: the red one"


async def test_answers_survive_continue_as_new(impatient: DevServer, settings: Settings) -> None:
    """A run that continues as new while it waits knows its answers, and its clock still stands."""
    limits = Limits(timeout=timedelta(minutes=10), timeout_excludes_people=True)
    painter = Agent(name="painter", model="scripted:painter", tools=[ask_person], limits=limits)
    mine = settings.model_copy(update={"address": impatient.address})
    models = {"scripted": ScriptedModel(_script)}
    async with running([painter], models=models, address=impatient.address, settings=mine) as client:
        run = await client.start("painter", "Paint.", id="painter-renewed")
        hall, roof = await open_questions(run, 2)
        assert not (await run.send("red", call_id=roof)).repeated
        for _ in range(30):
            assert (await run.send("red", call_id=roof)).repeated
        assert await open_questions(run, 1) == [hall]
        assert (await run.send("white")).call_id == hall.call_id
        assert (await run.result()).output == "hall: white; roof: red"
        sizes = await history_sizes(client, run.id)
        newest = [event.event_type async for event in run.handle.fetch_history_events()]
    assert len(sizes) > 1, "it has continued as new"
    assert newest.count(EventType.EVENT_TYPE_TIMER_STARTED) == 1, "set once, when the last answer was there"


async def test_continued_run_refuses_no_decision(impatient: DevServer, settings: Settings) -> None:
    """A decision that comes with the first task of a continued run finds the call that waits."""

    @tool(approval=True)
    async def pay() -> str:
        """Pay."""
        return "paid"

    def script(request: ModelRequest) -> Any:
        return calls("pay") if request.step == 1 else says("Done.")

    mine = settings.model_copy(update={"address": impatient.address})
    models = {"scripted": ScriptedModel(script)}
    payer = Agent(name="payer", model="scripted:x", tools=[pay])
    async with running([payer], models=models, address=impatient.address, settings=mine) as client:
        run = await client.start("payer", "Pay.", id="payer-renewed")
        await until_status(client, run.id, "waiting_approval")
        for number in range(25):
            # Without looking first: a query would wait until the run has its state.
            await run.send(f"note {number}")
            with pytest.raises(InvalidRequest, match="is not what you saw"):
                await run.resolve_approval("call-1-1", allow=True, digest="0" * 64)
        sizes = await history_sizes(client, run.id)
        await run.resolve_approval("call-1-1", allow=True)
        result = await run.result()
    assert len(sizes) > 1, "it has continued as new"
    assert result.tool_calls == 1
