"""The Temporal plugin: everything an agent needs of a client and a worker, in one object.

    client = await Client.connect("localhost:7233", plugins=[PerdurePlugin(agents=[support])])
    worker = Worker(client, task_queue="perdure")        # beside your own workflows, if you like

On the client, because the data converter belongs to it; workers and the replayer inherit it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.plugin import SimplePlugin
from temporalio.worker import Worker, WorkerConfig, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from perdure.agent import Agent
from perdure.blobs import BlobStore
from perdure.errors import DefinitionError
from perdure.model import Model
from perdure.prices import load as load_prices
from perdure.settings import Settings
from perdure.settings import load as load_settings

from ..activities.model import ModelCalls
from ..activities.providers import default_models
from ..activities.resolve import Resolver
from ..activities.tool import ToolCalls
from ..activities.transcripts import Transcripts
from ..workflows.agent import AgentWorkflow
from .attributes import register_search_attributes
from .connection import store_of
from .converter import over
from .telemetry import interceptors

PASSED_THROUGH = (
    "perdure.activities",
    "perdure.agent",
    "perdure.blobs",
    "perdure.context",
    "perdure.effects",
    "perdure.errors",
    "perdure.limits",
    "perdure.messages",
    "perdure.model",
    "perdure.policy",
    "perdure.prices",
    "perdure.schema",
    "perdure.settings",
    "perdure.spec",
    "perdure.starter",
    "perdure.texts",
    "perdure.tools",
    "perdure.wire",
    "perdure.workers",
)
"""Not re-imported by the sandbox. One by one: passing "perdure" would pass `perdure.workflows` too,
and the sandbox would no longer look at what it is there for."""


STICKY = timedelta(seconds=1)
"""How long a message waits for the worker that knows the run, before any other may take it."""


class PerdurePlugin(SimplePlugin):
    """Serves agents: registers the workflow, the activities, the converter and the telemetry.

    Args:
        agents: what this worker serves; none on a mere client.
        models: providers by the name before the colon, over the built-in ones.
        settings: those of the environment when None.
        blobs: the blob store; the settings' when None.

    Raises:
        DefinitionError: two agents of one name, or settings that cannot be.

    """

    def __init__(
        self,
        agents: Sequence[Agent] = (),
        *,
        models: Mapping[str, Model] | None = None,
        settings: Settings | None = None,
        blobs: BlobStore | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        self.agents = by_name(agents)
        self.models: dict[str, Model] = {**default_models(self.settings), **(models or {})}
        self.blobs = blobs or store_of(self.settings)
        self.transcripts = Transcripts(self.settings.transcript_cache_bytes)
        self._executor = ThreadPoolExecutor(self.settings.max_concurrent_activities, "perdure-tool")
        super().__init__(
            "perdure",
            data_converter=lambda existing: over(existing, self.blobs, self.settings.blob_threshold_bytes),
            workflow_runner=pass_vocabulary_through,
            workflows=[AgentWorkflow],
            activities=self._activities(),
            interceptors=interceptors(self.settings),
        )

    def _activities(self) -> list[Callable[..., Any]]:
        interval = self.settings.progress_interval
        resolver = Resolver(
            agents=self.agents,
            prices=load_prices(self.settings.prices),
            search_attributes=self.settings.search_attributes,
        )
        model_calls = ModelCalls(
            models=self.models,
            agents=self.agents,
            transcripts=self.transcripts,
            blobs=self.blobs,
            progress_interval=interval,
        )
        tool_calls = ToolCalls(
            agents=self.agents,
            blobs=self.blobs,
            executor=self._executor,
            transcripts=self.transcripts,
            progress_interval=interval,
        )
        return [resolver.resolve_agent, model_calls.call_model, tool_calls.call_tool]

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """Add what is ours; limits and intervals that the user left at their defaults become ours."""
        _check_converter(config)
        config = super().configure_worker(config)
        # Temporal's defaults are a minute and ten seconds: a stop would take that long to arrive,
        # and so would the next message after a worker's death.
        config["max_heartbeat_throttle_interval"] = self.settings.progress_interval
        config["default_heartbeat_throttle_interval"] = self.settings.progress_interval
        config["sticky_queue_schedule_to_start_timeout"] = STICKY
        return config

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:  # noqa: A002
        """Make sure that the server knows our search attributes before the first run needs them."""
        if self.settings.search_attributes:
            await register_search_attributes(worker.client)
        await super().run_worker(worker, next)


def _check_converter(config: WorkerConfig) -> None:
    client = config.get("client")
    assert client is not None, "a worker has a client"
    converter = client.data_converter
    if not issubclass(converter.payload_converter_class, PydanticPayloadConverter):
        raise DefinitionError(
            "PerdurePlugin must be given to the client, for the data converter belongs to it: "
            "Client.connect(..., plugins=[PerdurePlugin(agents=[...])])"
        )


def by_name(agents: Sequence[Agent]) -> dict[str, Agent]:
    """The agents by their names.

    Raises:
        DefinitionError: two of one name, or something that is no agent.

    """
    named: dict[str, Agent] = {}
    for agent in agents:
        if not isinstance(agent, Agent):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"{agent!r} is no Agent")
        if agent.name in named:
            raise DefinitionError(f"two agents are called {agent.name!r}; rename one")
        named[agent.name] = agent
    return named


def pass_vocabulary_through(existing: WorkflowRunner | None) -> WorkflowRunner:
    """Let the sandbox share what is pure and slow to import."""
    if isinstance(existing, SandboxedWorkflowRunner):
        return replace(existing, restrictions=existing.restrictions.with_passthrough_modules(*PASSED_THROUGH))
    return existing or SandboxedWorkflowRunner()
