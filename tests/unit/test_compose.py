"""The compose file, its scripts and the Dockerfile, checked without an engine."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure.wire.attributes import SEARCH_ATTRIBUTES

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NAMES = sorted(SERVICES)
SCRIPTS = sorted((ROOT / "deploy" / "compose").glob("*.sh"))
ONE_SHOTS = {"schema", "namespace"}
PINNED = re.compile(r"^[a-z0-9./-]+:\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?$")


def _conditions(name: str) -> dict[str, str]:
    return {target: wait["condition"] for target, wait in SERVICES[name].get("depends_on", {}).items()}


def _mounts(name: str) -> list[list[str]]:
    return [mount.split(":") for mount in SERVICES[name].get("volumes", [])]


@pytest.mark.parametrize("name", NAMES)
def test_services_wait_for_existing_services(name: str) -> None:
    """Every service waits for services that exist."""
    assert _conditions(name).keys() <= SERVICES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_awaited_conditions_can_be_met(name: str) -> None:
    """A service that another waits for can reach the awaited condition."""
    for target, condition in _conditions(name).items():
        if condition == "service_healthy":
            healthy = "healthcheck" in SERVICES[target] or "build" in SERVICES[target]
            assert healthy, f"{target} has no healthcheck"
        else:
            assert condition == "service_completed_successfully"
            assert target in ONE_SHOTS, f"{target} never ends"


@pytest.mark.parametrize("name", NAMES)
def test_only_lasting_services_restart(name: str) -> None:
    """Only lasting services are restarted without limit."""
    wanted = "on-failure:6" if name in ONE_SHOTS else "unless-stopped"
    assert SERVICES[name]["restart"] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_ports_are_bound_to_this_machine(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", NAMES)
def test_images_are_pinned_or_built_here(name: str) -> None:
    assert "build" in SERVICES[name] or PINNED.match(SERVICES[name]["image"])


def test_server_and_tools_share_version() -> None:
    """The server and its tools have the same version."""
    versions = {SERVICES[name]["image"].partition(":")[2] for name in ("schema", "temporal", "namespace")}
    assert len(versions) == 1


@pytest.mark.parametrize("name", NAMES)
def test_mounts_exist_and_volumes_are_declared(name: str) -> None:
    """Mounted files exist, and volumes are declared."""
    for source, *_ in _mounts(name):
        if source.startswith("."):
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]


def test_every_declared_volume_is_used() -> None:
    used = {mount[0] for name in NAMES for mount in _mounts(name)}
    assert COMPOSE["volumes"].keys() <= used


def test_worker_file_exists_and_is_mounted() -> None:
    """The worker serves a file that exists and is mounted."""
    command, agents = SERVICES["worker"]["command"]
    file = re.fullmatch(r"\$\{PERDURE_AGENTS:-(.+)\}", agents)
    assert command == "worker"
    assert file is not None
    assert (ROOT / file[1]).is_file()
    assert ["./examples", "/app/examples", "ro"] in _mounts("worker")


def test_worker_outlives_its_calls() -> None:
    """The worker gets more time to end than its calls."""
    assert SERVICES["worker"]["stop_grace_period"] == "45s"


def test_scripts_register_every_search_attribute() -> None:
    """The scripts register every search attribute with its type."""
    script = (ROOT / "deploy/compose/namespace.sh").read_text()
    assert dict(re.findall(r"^register (\w+) (\w+)$", script, re.MULTILINE)) == SEARCH_ATTRIBUTES


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_posix_and_strict(script: Path) -> None:
    """The scripts are POSIX shell and stop at the first error."""
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "set -eu\n" in text
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-n", str(script)], check=True)


def test_services_run_the_mounted_scripts() -> None:
    """The mounted scripts are those that the services run."""
    for name in ONE_SHOTS:
        assert SERVICES[name]["entrypoint"][-1] == _mounts(name)[0][1]


def _stages() -> list[str]:
    return re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)


def test_image_stages_share_pinned_base() -> None:
    """The image is built in stages from a single pinned base."""
    stages = _stages()
    assert len(stages) >= 2
    assert all(PINNED.match(base) for base in stages)
    assert len(set(stages)) == 1, "a virtual environment only works with the Python that made it"


def test_image_is_unprivileged_and_checks_health() -> None:
    """The image runs without privileges and checks the worker's health."""
    final = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    user = re.search(r"^USER (\d+):(\d+)$", final, re.MULTILINE)
    assert user is not None, "a number: Kubernetes can check that it is not root"
    assert "0" not in user.groups()
    health = re.search(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", final)
    assert health is not None
    assert "perdure.workers.observe.health" in health[1]
    assert "/ready" in health[1]
    assert "PERDURE_HEALTH_ADDRESS=0.0.0.0:8080" in final


def test_the_image_installs_extras_that_exist() -> None:
    extras = re.search(r'"\.\[([\w,]+)\]"', DOCKERFILE)
    assert extras is not None
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras[1].split(",")) <= known.keys()


def test_build_context_is_minimal() -> None:
    """The build context has what the build needs, and nothing else."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    links = {path.resolve().name for path in (ROOT / "perdure").iterdir() if path.is_symlink()}
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    assert {*links, *folders, "perdure", "pyproject.toml", "requirements.txt"} <= kept
    assert all((ROOT / name).exists() for name in kept)
    assert not kept & {".env", ".git", "tests", "docs"}
