"""Versions: which build of a worker deployment is given the work of a task queue. Pure."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

UNVERSIONED: Final = "workers without a version"


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where a task queue's new runs go. A version is `deployment:build`; None: workers without one."""

    current: str | None = None
    ramping: str | None = None
    percent: float = 0
    """Of new runs, to what is ramping."""
    polling: Collection[str | None] = ()
    """The versions that ask for work."""

    @property
    def taken(self) -> set[str | None]:
        """The versions that new runs go to."""
        if self.percent <= 0:
            return {self.current}
        return {self.ramping} if self.percent >= 100 else {self.current, self.ramping}


def routing_of(described: Any) -> Routing:
    """The routing in the server's description of a task queue."""
    info = described.versioning_info
    return Routing(
        current=version_of(info.current_deployment_version),
        ramping=version_of(info.ramping_deployment_version),
        percent=info.ramping_version_percentage,
        polling={version_of(poller.deployment_options) for poller in described.pollers},
    )


def version_of(named: Any) -> str | None:
    """The version that a value with `deployment_name` and `build_id` names; None unless it names both."""
    whole = named.deployment_name and named.build_id
    return f"{named.deployment_name}:{named.build_id}" if whole else None


def new_runs_problem(routing: Routing, own: str) -> str | None:
    """What keeps new runs from a worker of that version, and what to do; None: nothing."""
    if own in routing.taken:
        return None
    build = own.partition(":")[2]
    if routing.current is None:
        return (
            f"build {build!r} is given no work: no version of its deployment is current yet; make it so: "
            f"perdure deploy promote {build}"
        )
    current = routing.current.partition(":")[2]
    return (
        f"new runs go to build {current!r}, and none to {build!r} yet: perdure deploy ramp {build} 5, "
        f"or perdure deploy promote {build}"
    )


def versions_problem(routing: Routing) -> str | None:
    """What is wrong when versions ask for work and new runs go to none of them; None: nothing."""
    if not routing.polling or routing.taken & set(routing.polling):
        return None
    return (
        f"new runs go to {_listed(routing.taken)}, and only {_listed(set(routing.polling))} ask for work: "
        "see perdure deploy status"
    )


def _listed(versions: set[str | None]) -> str:
    return " and ".join(sorted(one or UNVERSIONED for one in versions))
