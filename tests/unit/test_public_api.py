"""The public surface: pinned, lazy, and free of names that a module of ours would take away."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import perdure
import perdure.testing

ROOT = Path(__file__).parents[2]

PUBLIC = [
    "Agent",
    "AgentTool",
    "BlobStore",
    "Client",
    "CredentialRequest",
    "Credentials",
    "DatedBlobStore",
    "DefinitionError",
    "Document",
    "Edge",
    "Fallback",
    "FatalToolError",
    "Graph",
    "GraphLimits",
    "GraphState",
    "Hook",
    "Image",
    "InstructionsContext",
    "InvalidRequest",
    "Lifespan",
    "Limits",
    "McpServer",
    "McpTool",
    "McpToolInfo",
    "Message",
    "ModelConfig",
    "ModelError",
    "Node",
    "NodeInput",
    "NodeResult",
    "NotReachable",
    "OutputMismatch",
    "Pattern",
    "PatternLimits",
    "PerdureError",
    "PerdurePlugin",
    "Policy",
    "RemoteTool",
    "RetryableToolError",
    "Rule",
    "Run",
    "RunConflict",
    "RunEnded",
    "RunFailed",
    "RunNotFound",
    "RunRequest",
    "RunResult",
    "RunStatus",
    "Session",
    "SlidingWindow",
    "StoredBlob",
    "Summary",
    "Swarm",
    "SwarmLimits",
    "Tool",
    "ToolContext",
    "ToolFallback",
    "ToolRetry",
    "TurnReply",
    "UnknownAgent",
    "Usage",
    "as_tool",
    "ask_person",
    "connect",
    "credentials",
    "lifespan",
    "run_agent",
    "tool",
]

HEAVY = (
    "temporalio",
    "anthropic",
    "boto3",
    "botocore",
    "openai",
    "structlog",
    "httpx",
    "rich",
    "typer",
    "opentelemetry",
)


def in_a_new_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_public_names_match_promise() -> None:
    assert perdure.__all__ == PUBLIC
    assert dir(perdure) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(perdure, name) is not None


def test_every_name_for_tests_is_there() -> None:
    assert all(getattr(perdure.testing, name) is not None for name in perdure.testing.__all__)


def test_earlier_method_names_still_work() -> None:
    """Scripts that were written before a method got its better name go on working."""
    classes: list[Any] = [perdure.Run, perdure.Session, perdure.Client]
    run, session, client = classes
    assert (run.decide, run.described) == (run.resolve_approval, run.describe)
    assert session.decide == session.resolve_approval
    assert client.parked == client.parked_runs


def test_missing_name_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'perdure' has no attribute 'Agnet'"):
        perdure.Agnet  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnusedExpression]


def test_no_module_shadows_public_name() -> None:
    """Importing it would put the module in the place of the name."""
    folder = ROOT / "perdure"
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(perdure.__all__) == set()


def test_importing_the_package_imports_nothing_heavy() -> None:
    listed = f"import sys, perdure; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert in_a_new_process(listed) == "[]"


def test_agent_needs_no_temporal_import() -> None:
    """Describing an agent imports neither Temporal nor a provider."""
    code = (
        "import sys; from perdure import Agent, Limits, tool, ask_person;"
        "Agent(name='a', model='scripted:x', tools=[ask_person]).spec();"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert in_a_new_process(code) == "[]"
