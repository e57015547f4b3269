"""How workflows are run: what the sandbox shares, and when it is not entered for payloads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    DataConverter,
    ExternalStorage,
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
)
from temporalio.worker import UnsandboxedWorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from perdure.activities.content.blobs import FileBlobs
from perdure.workers.converter import BlobDriver, data_converter
from perdure.workers.runner import PURE, WORKFLOWS, share_modules, skip_unused_contexts


class ContextCodec(PayloadCodec, WithSerializationContext):
    """A user's codec with a key for each run."""

    def __init__(self, context: SerializationContext | None = None) -> None:
        self.context = context

    def with_context(self, context: SerializationContext) -> "ContextCodec":
        return ContextCodec(context)

    async def encode(self, payloads: Any) -> list[Payload]:
        return list(payloads)

    async def decode(self, payloads: Any) -> list[Payload]:
        return list(payloads)


class TheirDriver(BlobDriver):
    """A user's storage, which may name its objects by the run."""

    def name(self) -> str:
        return "theirs"


def passed(runner: Any) -> set[str]:
    assert isinstance(runner, SandboxedWorkflowRunner)
    return set(runner.restrictions.passthrough_modules)


def test_strict_sandbox_shares_only_pure_modules() -> None:
    assert {*PURE, *WORKFLOWS} <= passed(share_modules(None))
    assert set(PURE) <= passed(share_modules(None, strict=True))
    assert not set(WORKFLOWS) & passed(share_modules(None, strict=True))


def test_user_restrictions_are_kept() -> None:
    theirs = SandboxedWorkflowRunner()
    theirs = replace(theirs, restrictions=theirs.restrictions.with_passthrough_modules("theirs"))
    runner = skip_unused_contexts(share_modules(theirs), DataConverter.default)
    assert {"theirs", *PURE} <= passed(runner)


@pytest.mark.parametrize("threshold", [None, 1000])
def test_unused_contexts_are_skipped(tmp_path: Path, threshold: int | None) -> None:
    store = None if threshold is None else FileBlobs(tmp_path)
    runner = skip_unused_contexts(share_modules(None), data_converter(store, threshold or 0))
    assert type(runner) is not SandboxedWorkflowRunner
    assert isinstance(runner, SandboxedWorkflowRunner)


def test_contexts_that_are_read_are_kept(tmp_path: Path) -> None:
    ours = data_converter(FileBlobs(tmp_path), 1000)
    theirs = TheirDriver(FileBlobs(tmp_path))
    read = [
        replace(ours, payload_codec=ContextCodec()),
        replace(ours, external_storage=ExternalStorage(drivers=[theirs])),
        replace(
            ours,
            external_storage=ExternalStorage(
                drivers=[BlobDriver(FileBlobs(tmp_path))], driver_selector=lambda _context, _payload: None
            ),
        ),
    ]
    for converter in read:
        assert type(skip_unused_contexts(share_modules(None), converter)) is SandboxedWorkflowRunner


def test_custom_runner_is_unchanged() -> None:
    theirs = UnsandboxedWorkflowRunner()
    assert share_modules(theirs) is theirs
    assert skip_unused_contexts(theirs, DataConverter.default) is theirs
