"""Connection to Temporal, which starters and workers share, and the description of a task queue.

Starters and workers must read what the other side writes, so both use one data converter; and both find
the server by the same settings. This is the only module of the workers that starters may import.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeTaskQueueRequest,
    ListWorkersRequest,
)
from temporalio.client import Client, Plugin
from temporalio.converter import PayloadCodec
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from perdure.blobs import BlobStore
from perdure.errors import DefinitionError, NotReachable
from perdure.settings import Settings
from perdure.task_queues import ServingWorker, TaskQueueInfo, parse_task_queue, parse_workers

from ..activities.content.blobs import open_store
from .converter import data_converter
from .sdk import ensure_default_runtime

_TASK_KINDS = {
    "workflow": TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    "activity": TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
}

_REFUSALS = (
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.UNAUTHENTICATED,
    RPCStatusCode.PERMISSION_DENIED,
    RPCStatusCode.INVALID_ARGUMENT,
)
_REFUSAL_SIGNS = ("Unauthenticated", "PermissionDenied", "certificate", "InvalidUri", "invalid uri")
"""Words of the SDK for a connection that the server refuses, or that can never be made."""


def configured_store(settings: Settings) -> BlobStore:
    """Return the blob store that the settings name."""
    return open_store(
        settings.blob_store,
        s3_endpoint=settings.blob_s3_endpoint,
        s3_region=settings.blob_s3_region,
        cache_bytes=settings.blob_cache_bytes,
    )


def configured_codec(settings: Settings) -> PayloadCodec | None:
    """Return the payload codec that the settings name, or None.

    Raises:
        DefinitionError: the function is not there, or gives no codec.

    """
    name = settings.payload_codec
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        codec = getattr(import_module(module), function)()
    except Exception as error:
        # The module is the user's: it may raise anything, and its error must name the setting.
        raise DefinitionError(f"payload codec {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(codec, PayloadCodec):
        raise DefinitionError(f"payload codec {name!r}: {codec!r} is no temporalio.converter.PayloadCodec")
    return codec


async def connect_temporal(
    settings: Settings, plugins: Sequence[Plugin] = (), *, blobs: BlobStore | None = None
) -> Client:
    """Return a Temporal client for the settings; without plugins, with our data converter.

    `blobs` is the converter's store in place of the configured one. A plugin brings its own.

    Raises:
        NotReachable: nothing answers at the address.

    """
    options: dict[str, Any] = {"plugins": list(plugins)}
    # With a plugin the converter is the plugin's affair: it extends the user's own.
    if not plugins:
        options["data_converter"] = data_converter(
            blobs or configured_store(settings),
            settings.blob_threshold_bytes,
            cache_bytes=settings.blob_cache_bytes,
            codec=configured_codec(settings),
        )
    ensure_default_runtime()
    try:
        return await Client.connect(
            settings.address,
            namespace=settings.namespace,
            api_key=settings.api_key.get_secret_value() if settings.api_key else None,
            tls=_tls_config(settings),
            **options,
        )
    except (RuntimeError, RPCError) as error:
        raise NotReachable(
            f"no Temporal server answers at {settings.address} ({_short_cause(error)}); "
            "start one with `perdure dev FILE`, or set PERDURE_ADDRESS"
        ) from error


async def connect_to_namespace(settings: Settings, plugins: Sequence[Plugin]) -> Client:
    """Return a client once the server serves the namespace: one that starts answers a little before that.

    Raises:
        NotReachable: nothing answers at the address, or not yet.

    """
    client = await connect_temporal(settings, plugins)
    try:
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=settings.namespace)
        )
    except RPCError as error:
        raise NotReachable(
            f"the Temporal server at {settings.address} does not serve namespace {settings.namespace!r}: "
            f"{error.message}"
        ) from error
    return client


def is_refused(error: NotReachable) -> bool:
    """Return whether the server answered, and said no: waiting does not help, a person must mend the settings."""
    cause = error.__cause__
    if isinstance(cause, RPCError):
        return cause.status in _REFUSALS
    return any(sign in str(cause) for sign in _REFUSAL_SIGNS)


async def describe_task_queue(
    temporal: Client, task_queue: str, *, tasks: Literal["workflow", "activity"] = "workflow"
) -> TaskQueueInfo:
    """Return the workers that poll a task queue for these tasks, and the versions that its new runs go to.

    Raises:
        RPCError: the server refuses or does not answer.

    """
    request = DescribeTaskQueueRequest(
        namespace=temporal.namespace,
        task_queue=TaskQueue(name=task_queue),
        task_queue_type=_TASK_KINDS[tasks],
    )
    return parse_task_queue(await temporal.workflow_service.describe_task_queue(request))


async def list_workers(temporal: Client, task_queue: str) -> list[ServingWorker]:
    """Return the workers of a task queue that have sent the server a heartbeat; a new one is missing for seconds.

    Raises:
        RPCError: the server refuses, does not answer, or is too old to know its workers.

    """
    request = ListWorkersRequest(
        namespace=temporal.namespace, page_size=1000, query=f'TaskQueue="{task_queue}"'
    )
    return parse_workers(await temporal.workflow_service.list_workers(request), task_queue)


def _tls_config(settings: Settings) -> "TLSConfig | bool":
    files = (settings.tls_ca, settings.tls_cert, settings.tls_key)
    if any(files):
        ca, cert, key = (path.read_bytes() if path else None for path in files)
        return TLSConfig(server_root_ca_cert=ca, client_cert=cert, client_private_key=key)
    # An API key must never travel in clear text, unless TLS is switched off by name.
    return settings.tls if settings.tls is not None else settings.api_key is not None


def _short_cause(error: Exception) -> str:
    """Return the cause in a few words; the transport's own message dumps its error types."""
    text = str(error)
    causes = {
        "Connection refused": "connection refused",
        "dns error": "no such host",
        "timed out": "timed out",
    }
    cause = next((words for sign, words in causes.items() if sign in text), None)
    return cause or text.removeprefix("Failed client connect: ").splitlines()[0][:200]
