"""The graph of a ReAct agent, and its workflow."""

from datetime import timedelta
from typing import Any

from langchain_core.messages import AIMessageChunk, ToolCall, message_chunk_to_message
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send
from temporalio import workflow
from temporalio.contrib.workflow_streams import WorkflowStream
from temporalio.langgraph import graph

with workflow.unsafe.imports_passed_through():
    from proofs.benchmarks.kit import Job

    from .model import Fake, lookup

NAME = "react-agent"
_MODEL = Fake().bind_tools([lookup])


async def agent(state: dict[str, Any]) -> dict[str, Any]:
    """Ask the model; words to stream, if the job has any, go to the stream writer as they come."""
    messages = state["messages"]  # as JSON made them: the model takes messages as dictionaries, too
    if not Job.of(messages[0]["content"]).tokens:
        return {"messages": [await _MODEL.ainvoke(messages)]}
    writer = get_stream_writer()
    whole = AIMessageChunk(content="")
    async for chunk in _MODEL.astream(messages):
        if chunk.text:
            writer({"token": chunk.text})
        whole += chunk
    if not whole.tool_calls:
        writer({"done": True})
    return {"messages": [message_chunk_to_message(whole)]}


async def tools(call: ToolCall) -> dict[str, Any]:
    """Run one tool call."""
    return {"messages": [await lookup.ainvoke(call)]}


async def should_continue(state: MessagesState) -> list[Send] | str:
    """One run of the tool node for each call of the newest message, in parallel; the end if there is none."""
    return [Send("tools", call) for call in state["messages"][-1].tool_calls] or END


def react_agent() -> StateGraph[Any, Any, Any, Any]:
    """START -> agent -> (tools -> agent)* -> END, both nodes as activities."""
    activity = {"execute_in": "activity", "start_to_close_timeout": timedelta(seconds=30)}
    built = StateGraph(MessagesState)
    built.add_node("agent", agent, metadata=activity)
    built.add_node("tools", tools, metadata=activity)
    built.add_edge(START, "agent")
    built.add_conditional_edges("agent", should_continue, ["tools", END])
    built.add_edge("tools", "agent")
    return built


@workflow.defn
class ReactAgentWorkflow:
    """One agent, one question."""

    def __init__(self) -> None:
        self.stream = WorkflowStream()

    @workflow.run
    async def run(self, prompt: str) -> str:
        """Run the graph."""
        state = await graph(NAME).compile().ainvoke({"messages": [{"role": "user", "content": prompt}]})
        return str(state["messages"][-1].content)
