"""What waits for a person anywhere in a tree is seen at its root, and answered there."""

from collections.abc import Callable
from typing import Any

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata

from perdure import Agent, InvalidRequest, ask_person, tool
from perdure.errors import ModelError
from perdure.model import ModelRequest
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, calls, says
from perdure.tools import PersonTool, Tool
from perdure.wire.results import Approval, Parked, Question, RunStatus
from tests.conftest import Serve, until_queried, until_status


@pytest.fixture(params=[1000, 0], ids=["cached", "replayed"])
def worker(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of the worker: each behaviour also holds when every task is a replay."""
    return {"max_cached_workflows": request.param}


@tool(effect="write", approval=True)
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


def _tree() -> Agent:
    """A boss, two middle ones, and one below each."""
    tools: list[Tool | PersonTool] = [pay, ask_person]
    leaf = Agent(name="leaf", model="scripted:leaf", description="Does it.", tools=tools, on_failure="park")
    middle = Agent(name="middle", model="scripted:middle", description="Has it done.", tools=[leaf.as_tool()])
    return Agent(name="boss", model="scripted:boss", tools=[middle.as_tool()])


def _script(of_leaf: Callable[[ModelRequest], Any], jobs: tuple[str, ...] = ("a", "b")) -> ScriptedModel:
    def answer(request: ModelRequest) -> Any:
        match request.config.model:
            case "boss" if request.step == 1:
                return [calls("middle", input=job) for job in jobs]
            case "middle" if request.step == 1:
                return calls("leaf", input=request.messages[0].text)
            case "leaf":
                return of_leaf(request)
            case _:
                return says("; ".join(r.text for r in request.messages[-1].tool_results))

    return ScriptedModel(answer)


def _pays(request: ModelRequest) -> Any:
    if request.step == 1:
        return calls("pay", cents=1 if request.messages[0].text == "a" else 2)
    return says(request.messages[-1].tool_results[0].text)


async def _waiting(run: Run, many: int) -> RunStatus:
    async def all_there() -> bool:
        return len((await run.status()).waiting) == many

    await until_queried(all_there)
    return await run.status()


async def _decide(run: Run, **decision: Any) -> None:
    await run.handle.execute_update("resolve_approval", decision)


async def test_root_lists_and_resolves_approvals(serve: Serve, worker: dict[str, Any]) -> None:
    """The root lists approvals below with their path, and resolves them."""
    async with serve(_tree(), models={"scripted": _script(_pays)}, worker=worker) as client:
        run = await client.start("boss", "go")
        status = await _waiting(run, 2)
        assert status.status == "waiting_approval"
        wants = {want.path[0]: want for want in status.waiting if isinstance(want, Approval)}
        first, second = wants["middle-1-1"], wants["middle-1-2"]
        assert first.path == ["middle-1-1", "leaf-1-1"]
        assert first.run_id == f"{run.id}/~middle-1-1/~leaf-1-1"
        assert (first.arguments, second.arguments) == ({"cents": 1}, {"cents": 2})
        plain = {"call_id": "call-1-1", "by": "lee"}
        await _decide(run, **plain, run_id=first.run_id, allow=True, digest=first.digest)
        await _decide(
            run, **plain, run_id=second.run_id, allow=False, reason="too much", digest=second.digest
        )
        result = await run.result()
    assert result.output == "paid 1; This call was refused by lee: too much"


async def test_decision_below_needs_digest(serve: Serve) -> None:
    """A decision about a call below is refused until it names what was seen, with and without the run's id."""
    async with serve(_tree(), models={"scripted": _script(_pays)}) as client:
        run = await client.start("boss", "go")
        status = await _waiting(run, 2)
        for run_id in (None, status.waiting[0].run_id):
            with pytest.raises(InvalidRequest, match="'call-1-1' is a call of a run below: say what you saw"):
                await client.get(run.id).resolve_approval("call-1-1", allow=True, run_id=run_id)
        await run.stop()
        assert len(status.waiting) == 2
        assert (await run.result()).stop_reason == "stopped"


@pytest.mark.parametrize(
    ("decision", "problem"),
    [
        ({"digest": "0" * 64}, "not what you saw"),
        ({"arguments": {"cents": "many"}}, "do not fit 'pay'"),
        ({"call_id": "call-9-9"}, "does not wait for an approval"),
        ({"run_id": "a-stranger"}, "no run 'a-stranger' goes on below this one"),
    ],
)
async def test_rejection_below_reaches_root(serve: Serve, decision: dict[str, Any], problem: str) -> None:
    async with serve(_tree(), models={"scripted": _script(_pays, jobs=("a",))}) as client:
        run = await client.start("boss", "go")
        approval = await run.find_approval() if (await _waiting(run, 1)).waiting else None
        assert approval is not None
        seen = {"call_id": "call-1-1", "run_id": approval.run_id, "digest": approval.digest, "allow": True}
        with pytest.raises(InvalidRequest, match=problem):
            await run.calls.update("resolve_approval", seen | decision)
        await run.resolve_approval(approval, allow=True)
        assert (await run.result()).output == "paid 1"


async def test_message_below_comes_once(serve: Serve) -> None:
    """A message to a run below keeps its id on the way there: sent again, it changes nothing."""
    read: list[str] = []

    def pays_and_reads(request: ModelRequest) -> Any:
        read[:] = [message.text for message in request.messages if message.role == "user"]
        return _pays(request) if request.step == 1 else says("done")

    async with serve(_tree(), models={"scripted": _script(pays_and_reads, ("a",))}) as client:
        run = await client.start("boss", "go")
        [approval] = (await _waiting(run, 1)).waiting
        message = {"id": "m1", "run_id": approval.run_id, "text": "be quick"}
        sent = [await run.handle.execute_update("send", message) for _ in range(2)]
        assert isinstance(approval, Approval)
        await run.decide(approval, allow=True)
        await run.result()
    assert [receipt.get("repeated", False) for receipt in sent] == [False, True]
    assert read.count("be quick") == 1


async def test_root_answers_question_below(serve: Serve, worker: dict[str, Any]) -> None:
    def asks(request: ModelRequest) -> Any:
        if request.step == 1:
            return calls("ask_person", question=f"Which of {request.messages[0].text}?")
        return says(request.messages[-1].tool_results[0].text)

    async with serve(_tree(), models={"scripted": _script(asks)}, worker=worker) as client:
        run = await client.start("boss", "go")
        status = await _waiting(run, 2)
        assert status.status == "waiting_person"
        for want in status.waiting:
            assert isinstance(want, Question)
            await run.handle.execute_update("send", {"run_id": want.run_id, "text": f"not {want.text[9]}"})
        result = await run.result()
    assert result.output == "not a; not b"


async def test_root_resumes_parked_run_below(serve: Serve, worker: dict[str, Any]) -> None:
    mended: list[bool] = []

    def fails_until_mended(request: ModelRequest) -> Any:
        if not mended:
            raise ModelError("authentication", "no key")
        return says("went on")

    model = _script(fails_until_mended, jobs=("a",))
    async with serve(_tree(), models={"scripted": model}, worker=worker) as client:
        run = await client.start("boss", "go")
        await until_status(client, run.id, "parked")
        [want] = (await run.status()).waiting
        assert isinstance(want, Parked)
        assert want.path == ["middle-1-1", "leaf-1-1"]
        assert want.failure.kind == "authentication"
        mended.append(True)
        await run.resume()
        assert (await run.result()).output == "went on"


async def test_root_details_list_waiting_runs(serve: Serve) -> None:
    async with serve(_tree(), models={"scripted": _script(_pays, jobs=("a",))}) as client:
        run = await client.start("boss", "go")
        [approval] = (await _waiting(run, 1)).waiting
        assert isinstance(approval, Approval)
        metadata = await run.handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
        assert "middle-1-1 / leaf-1-1 `call-1-1`" in metadata.current_details
        seen = f'{{"call_id": "call-1-1", "digest": "{approval.digest}", "allow": true, "by": "you"}}'
        assert seen in metadata.current_details
        await run.resolve_approval(approval, allow=True)
        await run.result()
