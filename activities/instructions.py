"""Instructions by functions: called when a run resolves, by its user; their texts become part of the pinned specs.

A run whose instructions cannot be made cannot begin: it waits, with the reason in words, and is tried again.
"""

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from temporalio.exceptions import ApplicationError

from perdure.agent import Agent
from perdure.instructions import InstructionsContext
from perdure.members import Member
from perdure.texts import fix_surrogates
from perdure.wire.effects import Asker
from perdure.wire.names import INSTRUCTIONS_FAILED
from perdure.wire.spec import AgentSpec, AnySpec, ResolvedAgent

from .content.redact import mask_own, redact_and_cut, redact_error
from .function_errors import log_function_error
from .heartbeat import was_cancelled
from .resources import WorkerResources
from .threads import FunctionThreads, call_function

_WITHIN: Final = 7.0
"""Seconds for all functions of a run: the activity has ten."""


@dataclass(frozen=True, kw_only=True)
class InstructionFunctions:
    """Calls of the functions that this worker's definitions have."""

    members: Mapping[str, Member]
    threads: FunctionThreads = field(default_factory=FunctionThreads)
    resources: WorkerResources = field(default_factory=WorkerResources)

    def are_among(self, names: Iterable[str]) -> bool:
        """Return whether an agent of these names, as this worker defines it, has instructions by a function."""
        return any(self._function(name) is not None for name in names)

    async def fill_in(self, resolved: ResolvedAgent, asker: Asker) -> ResolvedAgent:
        """Return the specs with the texts of the functions.

        Raises:
            ApplicationError: "InstructionsFailed", in words for people; the run asks again.

        """
        try:
            async with asyncio.timeout(_WITHIN):
                spec = await self._fill_in_spec(resolved.spec, asker)
                members = [await self._fill_in_spec(member, asker) for member in resolved.members]
        except TimeoutError:
            raise _failure(
                f"the instructions of {resolved.spec.name!r} were not made within {_WITHIN:g} s"
            ) from None
        return resolved.model_copy(update={"spec": spec, "members": tuple(members)})

    def _function(self, name: str) -> Any:
        member = self.members.get(name)
        return member.instructions if isinstance(member, Agent) and callable(member.instructions) else None

    async def _fill_in_spec(self, spec: AnySpec, asker: Asker) -> AnySpec:
        function = self._function(spec.name)
        if not isinstance(spec, AgentSpec) or function is None:
            return spec
        subject = InstructionsContext[Any](
            agent=spec.name,
            user=asker.user,
            roles=tuple(asker.roles),
            context=dict(asker.context),
            resources=self.resources.of(spec.name),
        )
        name = f"instructions:{spec.name}"
        is_async = inspect.iscoroutinefunction(function)
        try:
            text = await call_function(self.threads, name, partial(function, subject), is_async=is_async)
        except BaseException as error:  # `sys.exit` in a function is its failure, and not the worker's end
            if was_cancelled(error) or isinstance(error, TimeoutError):
                raise
            log_function_error(error, f"instructions of agent {spec.name!r}")
            words = f"{type(error).__name__}: {redact_error(error, 1000)}"
            raise _failure(f"the instructions of agent {spec.name!r} cannot be made: {words}") from None
        if not isinstance(text, str):
            raise _failure(
                f"the instructions of agent {spec.name!r} must be text, and its function gave a {type(text).__name__}"
            )
        return spec.model_copy(update={"instructions": mask_own(fix_surrogates(text))})


def _failure(message: str) -> ApplicationError:
    # Not retried by Temporal: the run itself tries again, and says why it waits.
    return ApplicationError(redact_and_cut(message, 2000), type=INSTRUCTIONS_FAILED, non_retryable=True)
