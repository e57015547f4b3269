"""Renewal of blobs: what a run that continues as new names in its transcript gets a new date."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity

from perdure.blobs import BlobStore, DatedBlobStore
from perdure.wire.effects import Progress
from perdure.wire.names import RENEW_BLOBS

from .heartbeat import Heartbeats

_AT_ONCE = 16
_BEAT = timedelta(seconds=2)


@dataclass(frozen=True, kw_only=True)
class BlobRenewal:
    """Activity `renew_blobs`."""

    blobs: BlobStore

    @activity.defn(name=RENEW_BLOBS)
    async def renew_blobs(self, names: Sequence[str]) -> None:
        """Renew the blobs. One that is gone cannot be renewed: whoever reads it says so."""
        # A store may be slow. Without heartbeats a dead worker would be noticed only at the end of the time for all.
        async with Heartbeats(_progress, _BEAT):
            for few in (names[at : at + _AT_ONCE] for at in range(0, len(names), _AT_ONCE)):
                await asyncio.gather(*map(self._renew, few))

    async def _renew(self, name: str) -> None:
        try:
            if isinstance(self.blobs, DatedBlobStore):
                await self.blobs.renew(name)
            else:
                await self.blobs.put(await self.blobs.get(name))
        except KeyError as error:
            activity.logger.warning("a blob of the transcript is gone: %s", error)


def _progress(seq: int, _window: int) -> Progress:
    return Progress(call=RENEW_BLOBS, attempt=activity.info().attempt, seq=seq)
