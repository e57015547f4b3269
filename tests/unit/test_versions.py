"""To which build new runs go, and what is said to whoever gets none."""

from datetime import UTC, datetime, timedelta

import pytest
from temporalio.api.deployment.v1 import WorkerDeploymentOptions, WorkerDeploymentVersion
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueueVersioningInfo
from temporalio.api.workflowservice.v1 import DescribeTaskQueueResponse

from perdure.settings import load_settings
from perdure.starter.client.deployment import Build, DeploymentStatus
from perdure.starter.client.rollout import warnings
from perdure.task_queues import parse_task_queue
from perdure.versions import Routing, new_runs_problem, routing_of, version_of, versions_problem


def described(
    current: str | None, ramping: str | None, percent: float, *polling: str | None
) -> DescribeTaskQueueResponse:
    info = TaskQueueVersioningInfo(
        current_deployment_version=_version(current),
        ramping_deployment_version=_version(ramping),
        ramping_version_percentage=percent,
    )
    pollers = [
        PollerInfo(
            deployment_options=WorkerDeploymentOptions(deployment_name="desk", build_id=build)
            if build
            else WorkerDeploymentOptions(build_id="a digest of the SDK's own")
        )
        for build in polling
    ]
    return DescribeTaskQueueResponse(versioning_info=info, pollers=pollers)


def _version(build: str | None) -> WorkerDeploymentVersion | None:
    return WorkerDeploymentVersion(deployment_name="desk", build_id=build) if build else None


@pytest.mark.parametrize(
    ("current", "ramping", "percent", "taken"),
    [
        (None, None, 0, {None}),
        ("a", None, 0, {"desk:a"}),
        ("a", "b", 0, {"desk:a"}),
        ("a", "b", 5, {"desk:a", "desk:b"}),
        (None, "b", 5, {None, "desk:b"}),
        ("a", "b", 100, {"desk:b"}),
        ("a", None, 5, {"desk:a", None}),
    ],
)
def test_new_runs_follow_current_and_ramp(
    current: str | None, ramping: str | None, percent: float, taken: set[str | None]
) -> None:
    assert routing_of(described(current, ramping, percent)).targets == taken


def test_first_version_hears_it_gets_nothing() -> None:
    first = new_runs_problem(Routing(), "desk:a")
    assert first is not None
    assert "'a' gets no work: no version of its deployment is current yet" in first
    assert "perdure deploy promote a" in first
    second = new_runs_problem(Routing(current="desk:a"), "desk:b")
    assert second is not None
    assert "new runs go to build 'a'" in second
    assert new_runs_problem(Routing(current="desk:a", ramping="desk:b", percent=1), "desk:b") is None


def test_idle_version_has_no_workers() -> None:
    lonely = versions_problem(routing_of(described(None, None, 0, "a")))
    assert lonely is not None
    assert "new runs go to workers without a version, and only desk:a poll" in lonely
    assert versions_problem(routing_of(described("a", None, 0, "a", None))) is None
    assert versions_problem(routing_of(described(None, None, 0, None))) is None
    assert versions_problem(routing_of(described("a", None, 0))) is None, "nobody works: said elsewhere"


def test_silent_worker_is_not_active() -> None:
    """The server lists a worker for five minutes after its last poll."""
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    description = described("a", None, 0, "a", None)
    for poller, name, age in zip(description.pollers, ("running", "ended"), (89, 91), strict=True):
        poller.identity = name
        poller.last_access_time.FromDatetime(now - timedelta(seconds=age))
    queue = parse_task_queue(description)
    assert [poller.identity for poller in queue.pollers] == ["running", "ended"]
    assert [poller.version for poller in queue.active_pollers(now)] == ["desk:a"]
    assert queue.routing.targets == {"desk:a"}


def test_version_needs_both_names() -> None:
    assert version_of(load_settings(deployment_name="desk", build_id="7")) == "desk:7"
    assert version_of(load_settings(deployment_name="desk")) is None


def status(current: str | None, *builds: Build) -> DeploymentStatus:
    return DeploymentStatus(
        name="desk", task_queue="q", current=current, ramping=None, percent=0, builds=list(builds)
    )


def build(name: str, percent: float = 0, *, runs: int = 0, workers: int = 0) -> Build:
    return Build(
        build=name,
        status="current" if percent else "draining",
        percent=percent,
        runs=runs,
        sessions=0,
        workers=workers,
        current_until=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_status_says_who_waits() -> None:
    said = warnings(status("b", build("b", 100), build("a", runs=2), build("old")))
    assert said == [
        "no worker of build 'b' polls task queue 'q': new runs wait",
        "no worker of build 'a' polls task queue 'q': runs that are pinned to it wait",
    ]
    [nobody] = warnings(status(None, build("a", workers=1)))
    assert "no build is current" in nobody
    assert "perdure deploy promote a" in nobody
