"""Temporal plugin: everything that agents need of a client and a worker, in one object.

    client = await Client.connect("localhost:7233", plugins=[PerdurePlugin(agents=[support])])
    worker = Worker(client, task_queue="perdure")        # beside your own workflows, if you like

It is given to the client, because the data converter belongs to it. Workers and the replayer inherit it.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import DataConverter
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    Interceptor,
    Worker,
    WorkerConfig,
    WorkflowInterceptorClassInput,
)

from perdure.agent import Agent
from perdure.blobs import BlobStore
from perdure.errors import DefinitionError
from perdure.graph import Graph, GraphCode
from perdure.mcp import may_be_tool_of
from perdure.members import Member, collect_members
from perdure.model import Model
from perdure.pattern import Pattern, SchedulerFactory, scheduler_factories
from perdure.prices import load_prices
from perdure.settings import Settings, load_settings
from perdure.swarm import Swarm
from perdure.task_queues import plugin_name
from perdure.tools import Tool
from perdure.user_credentials import CredentialsByMember, CredentialsProvider
from perdure.wire.names import GRAPH_CODE, SCHEDULERS

from ..activities.content.coded_blobs import CodedBlobs
from ..activities.content.redact import register_secrets
from ..activities.content.transcripts import Transcripts
from ..activities.credentials import WorkerCredentials
from ..activities.earlier_child import end_earlier_child
from ..activities.edits import Edits
from ..activities.genai import (
    count_circuit_opening,
    count_held_loop,
    count_lost_thread,
    watch_circuits,
    watch_threads,
)
from ..activities.hooks import HookRunner
from ..activities.instructions import InstructionFunctions
from ..activities.loop_watch import watch_loop
from ..activities.mcp.calls import McpCalls
from ..activities.mcp.pin import McpPins
from ..activities.mcp.pool import McpPool, require_sdk
from ..activities.mcp.values import missing_variables
from ..activities.model import ModelCalls
from ..activities.node import NodeCalls
from ..activities.outgoing import OutgoingGuard
from ..activities.providers.registry import default_models
from ..activities.rebuild import find_executions, rebuild
from ..activities.relay import relay
from ..activities.remember import remember
from ..activities.remote import count_attempts
from ..activities.renewal import BlobRenewal
from ..activities.resolve import Resolver
from ..activities.resources import WorkerResources
from ..activities.threads import FunctionThreads
from ..activities.tool import ToolCalls, tool_key
from ..activities.traffic.admission import Traffic
from ..activities.traffic.circuit import Circuits
from ..activities.traffic.rates import RateLimits, check_rate_limits
from ..workflows.agent import AgentWorkflow
from ..workflows.session import SessionWorkflow
from .attributes import register_search_attributes
from .connection import configured_codec, configured_store
from .converter import UndecodableArguments, extend_converter, with_codec
from .observe.telemetry import interceptors
from .runner import share_modules, skip_unused_contexts

_log = logging.getLogger("perdure.worker")
STICKY_TIMEOUT = timedelta(seconds=1)
"""Time that a workflow task waits for the worker that caches the run, before any worker may take it."""


class PerdurePlugin(SimplePlugin):
    """Plugin that registers workflows, activities, data converter and telemetry.

    Args:
        agents: agents, swarms, graphs and patterns to serve; all that they run is served too. None for a client
            that only starts runs.
        models: providers by the name before the colon; they replace built-in ones of the same name.
        settings: the environment's when None.
        blobs: the blob store; the settings' when None.
        resources: what tools, hooks and functions of graphs get as `resources`: a `lifespan`, which the worker enters,
            or a value.
        credentials: what tools get by `ToolContext.credentials`: the `@credentials` function.
        parks: False: what would park a run ends it as failed, for tests: there is nobody who would resume it.

    Raises:
        DefinitionError: two agents have the same name, or the settings are invalid. A worker also raises it for an
            agent that cannot run there; a replayer needs no models.

    """

    def __init__(
        self,
        agents: Sequence[Member] = (),
        *,
        models: Mapping[str, Model] | None = None,
        settings: Settings | None = None,
        blobs: BlobStore | None = None,
        resources: Any = None,
        credentials: CredentialsProvider | CredentialsByMember | None = None,
        parks: bool = True,
    ) -> None:
        self.settings = settings or load_settings()
        self._parks = parks
        register_secrets(self.settings)
        self.members = members_by_name(agents)
        members = self.members.items()
        self.resources = WorkerResources(resources, self.members)
        self.agents: dict[str, Agent[Any]] = {
            name: member for name, member in members if isinstance(member, Agent)
        }
        self.graphs = {name: member for name, member in members if isinstance(member, Graph)}
        self.models: dict[str, Model] = {**default_models(self.settings), **(models or {})}
        self.prices = load_prices(self.settings.prices)
        self.blobs = blobs or configured_store(self.settings)
        self._content = CodedBlobs(self.blobs)
        self.transcripts = Transcripts(self.settings.transcript_cache_bytes)
        self.traffic = _traffic(self.settings)
        self.mcp = McpPool()
        require_sdk([server for agent in self.agents.values() for server in agent.mcp_servers])
        self.threads = FunctionThreads(self.settings.max_lost_threads, count_lost_thread)
        watch_threads(self.threads)
        self.credentials = WorkerCredentials(credentials, self.members, threads=self.threads)
        super().__init__(
            plugin_name(self.members),
            data_converter=lambda existing: extend_converter(
                with_codec(existing, configured_codec(self.settings)),
                self.blobs,
                self.settings.blob_threshold_bytes,
                cache_bytes=self.settings.blob_cache_bytes,
            ),
            workflow_runner=partial(share_modules, strict=self.settings.strict_sandbox),
            workflows=[AgentWorkflow, SessionWorkflow],
            activities=self._activities(),
            interceptors=[
                UndecodableArguments(),
                *interceptors(self.settings),
                OutgoingGuard(),
                UserCode(self.graphs, scheduler_factories(self.members.values())),
            ],
        )

    def _check_models(self) -> None:
        """Check what the first run would find out: each provider is known, and prices where cost is limited.

        Raises:
            DefinitionError: a model of an agent cannot be called here, or its limit on cost cannot be kept.

        """
        for agent in self.agents.values():
            for config in agent.all_models:
                if config.provider not in self.models:
                    known = ", ".join(sorted(self.models))
                    raise DefinitionError(
                        f"agent {agent.name!r}: model {config.name!r}: there is no provider {config.provider!r}; "
                        f"the providers are {known}; for one of your own, give it in `models`"
                    )
        for member in self.members.values():
            member.spec(prices=self.prices, today=datetime.now(UTC).date())

    def _activities(self) -> list[Callable[..., Any]]:
        interval = self.settings.progress_interval
        traffic = self.traffic
        resolver = Resolver(
            members=self.members,
            prices=self.prices,
            search_attributes=self.settings.search_attributes,
            providers=self.models,
            transcripts=self.transcripts,
            parks=self._parks,
            instructions=InstructionFunctions(
                members=self.members, threads=self.threads, resources=self.resources
            ),
            pins=McpPins(members=self.members, pool=self.mcp),
        )
        hooks = HookRunner(agents=self.agents, threads=self.threads, resources=self.resources)
        model_calls = ModelCalls(
            models=self.models,
            agents=self.agents,
            transcripts=self.transcripts,
            blobs=self._content,
            traffic=traffic,
            hooks=hooks,
            model_hosts=self.settings.named_model_hosts,
            progress_interval=interval,
            parked_retry=self.settings.parked_retry,
        )
        tool_calls = ToolCalls(
            agents=self.agents,
            blobs=self._content,
            threads=self.threads,
            transcripts=self.transcripts,
            traffic=traffic,
            hooks=hooks,
            mcp=McpCalls(pool=self.mcp),
            resources=self.resources,
            credentials=self.credentials,
            progress_interval=interval,
        )
        nodes = NodeCalls(
            graphs=self.graphs, blobs=self._content, threads=self.threads, resources=self.resources
        )
        return [
            resolver.resolve_agent,
            model_calls.call_model,
            tool_calls.call_tool,
            nodes.call_node,
            nodes.keep_text,
            Edits(agents=self.agents).bind_arguments,
            hooks.run_hooks,
            relay,
            count_attempts,
            BlobRenewal(blobs=self.blobs).renew_blobs,
            end_earlier_child,
            rebuild,
            find_executions,
            remember,
        ]

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """Return the worker's configuration with our registrations, runner and intervals."""
        converter = _client_converter(config)
        self._check_models()
        self._content.codec = converter.payload_codec
        config = super().configure_worker(config)
        config["workflow_runner"] = skip_unused_contexts(config.get("workflow_runner"), converter)
        # Temporal's defaults are a minute for heartbeats and ten seconds for sticky tasks. A cancellation
        # would reach a call that late, and so would the next message after a worker's death reach a run.
        config["max_heartbeat_throttle_interval"] = self.settings.progress_interval
        config["default_heartbeat_throttle_interval"] = self.settings.progress_interval
        config["sticky_queue_schedule_to_start_timeout"] = STICKY_TIMEOUT
        return config

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:  # noqa: A002
        """Register our search attributes before the first run sets one; close the rate limits at the end."""
        for key in unmatched_rate_limits(self.settings.rate_limits, self.models, list(self.agents.values())):
            _log.warning(
                # Not an error: workers with other agents may share these settings.
                "PERDURE_RATE_LIMITS: %r is no provider, model or tool of this worker. "
                'Write "anthropic", "anthropic:model" or "tool:name"',
                key,
            )
        for warning in mcp_warnings(self.agents.values()):
            _log.warning("%s", warning)
        try:
            async with AsyncExitStack() as stack:
                try:
                    if self.settings.search_attributes:
                        await register_search_attributes(worker.client)
                    await stack.enter_async_context(self.resources.entered())
                except BaseException:
                    # Nothing was started. The SDK marks a worker that fails its own validation in the same way;
                    # without that, `async with Worker(...)` would wait for ever for the end of its shutdown.
                    worker._shutdown_complete_event.set()  # pyright: ignore[reportPrivateUsage]
                    raise
                await stack.enter_async_context(watch_loop(count_held_loop))
                await super().run_worker(worker, next)
        finally:
            await self.mcp.close()
            await self.traffic.rates.close()


def _client_converter(config: WorkerConfig) -> DataConverter:
    """Return the client's converter; raise DefinitionError if the client does not have this plugin."""
    client = config.get("client")
    assert client is not None, "a worker has a client"
    converter = client.data_converter
    if not issubclass(converter.payload_converter_class, PydanticPayloadConverter):
        raise DefinitionError(
            "PerdurePlugin must be given to the client, for the data converter belongs to it: "
            "Client.connect(..., plugins=[PerdurePlugin(agents=[...])])"
        )
    return converter


def _traffic(settings: Settings) -> Traffic:
    store = settings.rate_limit_store.get_secret_value()
    check_rate_limits(settings.rate_limits, store)
    circuits = Circuits(
        threshold=settings.circuit_threshold,
        first_wait=settings.circuit_wait,
        longest_wait=settings.circuit_wait * 4,
        on_open=count_circuit_opening,
    )
    watch_circuits(circuits)
    return Traffic(circuits=circuits, rates=RateLimits(settings.rate_limits, store))


def unmatched_rate_limits(
    limits: Collection[str], providers: Collection[str], agents: Collection[Agent]
) -> list[str]:
    """Return the keys of rate limits that limit no call of these agents, perhaps because of a typo."""
    known = set(providers)
    for agent in agents:
        known.update(config.name for config in agent.all_models)
        known.update(tool_key(tool.name) for tool in agent.tools if isinstance(tool, Tool))
    servers = [server for agent in agents for server in agent.mcp_servers]
    # The tools of a server are known only when a run resolves.
    return sorted(
        key
        for key in set(limits) - known
        if not (key.startswith(tool_key("")) and may_be_tool_of(servers, key.removeprefix(tool_key(""))))
    )


def mcp_warnings(agents: Iterable[Agent]) -> list[str]:
    """Return what the MCP servers of these agents lack in this worker's environment."""
    servers = {server.place: server for agent in agents for server in agent.mcp_servers}
    return [
        f"MCP server {server.name!r}: {', '.join(missing)} is not set in this worker's environment; "
        "runs that need it wait until it is"
        for server in servers.values()
        if (missing := missing_variables(server))
    ]


def members_by_name(agents: Sequence[Member]) -> dict[str, Member]:
    """Return the agents, swarms, graphs and patterns, and all that they run, by name.

    Raises:
        DefinitionError: two have the same name, or a value is none of these.

    """
    for agent in agents:
        if not isinstance(agent, Agent | Swarm | Graph | Pattern):
            raise DefinitionError(f"{agent!r} is no Agent, Swarm, Graph or Pattern")
    return collect_members(*agents)


class UserCode(Interceptor):
    """Interceptor that hands runs the code that their specs name: functions of graphs, schedulers of patterns.

    The sandbox binds it anew for each run.
    """

    def __init__(self, graphs: Mapping[str, Graph], schedulers: Mapping[str, SchedulerFactory]) -> None:
        self._graphs = graphs
        self._schedulers = schedulers

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> None:  # noqa: A002
        """Make functions available to the sandbox by the graph's name, and schedulers by the pattern's kind."""
        input.unsafe_extern_functions[GRAPH_CODE] = self._functions
        input.unsafe_extern_functions[SCHEDULERS] = self._schedulers.get

    def _functions(self, name: str) -> GraphCode | None:
        graph = self._graphs.get(name)
        return None if graph is None else graph.code()
