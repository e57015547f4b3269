"""Versions: the builds of a worker deployment to which a task queue's new runs go. Pure."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

UNVERSIONED: Final = "workers without a version"


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Routing of a task queue's new runs. A version is `deployment:build`; None: unversioned workers."""

    current: str | None = None
    ramping: str | None = None
    percent: float = 0
    """Percentage of new runs that goes to the ramping version."""
    polling: Collection[str | None] = ()
    """Versions whose workers poll the queue."""

    @property
    def targets(self) -> set[str | None]:
        """Versions to which new runs go."""
        # A ramping version of 0 percent gets no runs, and one of 100 percent gets all.
        if self.percent <= 0:
            return {self.current}
        return {self.ramping} if self.percent >= 100 else {self.current, self.ramping}


def routing_of(described: Any) -> Routing:
    """Return the routing in the server's description of a task queue."""
    info = described.versioning_info
    return Routing(
        current=version_of(info.current_deployment_version),
        ramping=version_of(info.ramping_deployment_version),
        percent=info.ramping_version_percentage,
        polling={version_of(poller.deployment_options) for poller in described.pollers},
    )


def version_of(named: Any) -> str | None:
    """Return the version that a value with `deployment_name` and `build_id` names; None without both."""
    has_both = named.deployment_name and named.build_id
    return f"{named.deployment_name}:{named.build_id}" if has_both else None


def new_runs_problem(routing: Routing, own: str) -> str | None:
    """Return why no new runs go to workers of that version and what to do; None when they do."""
    if own in routing.targets:
        return None
    build = own.partition(":")[2]
    if routing.current is None:
        return (
            f"build {build!r} gets no work: no version of its deployment is current yet; to make it current: "
            f"perdure deploy promote {build}"
        )
    current = routing.current.partition(":")[2]
    return (
        f"new runs go to build {current!r}, and none to {build!r} yet: perdure deploy ramp {build} 5, "
        f"or perdure deploy promote {build}"
    )


def versions_problem(routing: Routing) -> str | None:
    """Return the problem that new runs go to no version whose workers poll, or None."""
    # Without any worker the problem is another, which is reported elsewhere.
    if not routing.polling or routing.targets & set(routing.polling):
        return None
    return (
        f"new runs go to {_join_names(routing.targets)}, and only {_join_names(set(routing.polling))} poll: "
        "see perdure deploy status"
    )


def _join_names(versions: set[str | None]) -> str:
    return " and ".join(sorted(version or UNVERSIONED for version in versions))
