"""Connecting to Temporal: the one thing that starters and workers do alike.

Both ends of the wire must read what the other writes, so they share the data converter; and both
find the server by the same settings.
"""

from collections.abc import Sequence
from typing import Any

from temporalio.client import Client, Plugin
from temporalio.service import RPCError, TLSConfig

from perdure.blobs import BlobStore
from perdure.errors import NotReachable
from perdure.settings import Settings

from ..activities.content.blobs import open_store
from .converter import data_converter


def store_of(settings: Settings) -> BlobStore:
    """The blob store that the settings name."""
    return open_store(
        settings.blob_store,
        s3_endpoint=settings.blob_s3_endpoint,
        s3_region=settings.blob_s3_region,
        cache_bytes=settings.blob_cache_bytes,
    )


async def connect_temporal(settings: Settings, plugins: Sequence[Plugin] = ()) -> Client:
    """The Temporal client of the settings; without plugins, with our data converter.

    Raises:
        NotReachable: nothing answers at the address.

    """
    options: dict[str, Any] = {"plugins": list(plugins)}
    if not plugins:
        options["data_converter"] = data_converter(
            store_of(settings), settings.blob_threshold_bytes, cache_bytes=settings.blob_cache_bytes
        )
    try:
        return await Client.connect(
            settings.address,
            namespace=settings.namespace,
            api_key=settings.api_key.get_secret_value() if settings.api_key else None,
            tls=_tls(settings),
            **options,
        )
    except (RuntimeError, RPCError) as error:
        raise NotReachable(
            f"no Temporal server answers at {settings.address} ({_short(error)}); "
            "start one with `perdure dev FILE`, or set PERDURE_ADDRESS"
        ) from error


def _tls(settings: Settings) -> "TLSConfig | bool":
    files = (settings.tls_ca, settings.tls_cert, settings.tls_key)
    if any(files):
        ca, cert, key = (path.read_bytes() if path else None for path in files)
        return TLSConfig(server_root_ca_cert=ca, client_cert=cert, client_private_key=key)
    return settings.tls if settings.tls is not None else settings.api_key is not None


def _short(error: Exception) -> str:
    """The cause in words; the transport's own is a dump of its error types."""
    text = str(error)
    known = {
        "Connection refused": "connection refused",
        "dns error": "no such host",
        "timed out": "timed out",
    }
    found = next((words for sign, words in known.items() if sign in text), None)
    return found or text.removeprefix("Failed client connect: ").splitlines()[0][:200]
