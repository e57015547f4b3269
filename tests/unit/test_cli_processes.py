"""What worker, dev and doctor decide before they do anything."""

import argparse
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.common import VersioningBehavior

from perdure import Agent, ModelConfig
from perdure.errors import DefinitionError, ModelError
from perdure.settings import load_settings
from perdure.testing import ScriptedModel, says
from perdure.workers.dev.supervisor import Plan, _belongs_to_agents, make_plan
from perdure.workers.observe import telemetry
from perdure.workers.observe.doctor import _key_of, _skew
from perdure.workers.worker import Ready, check_models, worker_options


class Keyless(ScriptedModel):
    def check(self, config: ModelConfig) -> None:
        raise ModelError("authentication", "set THE_KEY")


class Picky(ScriptedModel):
    def check(self, config: ModelConfig) -> None:
        raise DefinitionError("no option 'x'")


def test_each_model_is_checked() -> None:
    models = {"good": ScriptedModel([says("hi")]), "keyless": Keyless([]), "picky": Picky([])}
    chain = Agent(name="chain", model="good:x", fallbacks=["keyless:y"])
    assert check_models([chain], models) == ["agent 'chain', model keyless:y: set THE_KEY"]
    with pytest.raises(DefinitionError, match="agent 'p': no option 'x'"):
        check_models([Agent(name="p", model="picky:x")], models)
    with pytest.raises(DefinitionError, match=r"no provider 'nosuch' .*; there are: good, keyless, picky"):
        check_models([Agent(name="n", model="nosuch:x")], models)


def test_worker_options_follow_settings() -> None:
    options = worker_options(load_settings(max_concurrent_activities=3, graceful_shutdown_timeout="5s"))
    assert options["max_concurrent_activities"] == 3
    assert options["graceful_shutdown_timeout"] == timedelta(seconds=5)
    assert "deployment_config" not in options


def test_deployment_pins_runs() -> None:
    config = worker_options(load_settings(deployment_name="desk", build_id="7"))["deployment_config"]
    assert (config.version.deployment_name, config.version.build_id) == ("desk", "7")
    assert config.use_worker_versioning
    assert config.default_versioning_behavior == VersioningBehavior.PINNED


def test_pending_telemetry_does_not_delay_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_FLUSH_SECONDS", 0.05)
    never = threading.Event()
    with telemetry._bounded_cleanup() as cleanup:
        cleanup.callback(never.wait)
    never.set()


def test_ready_line_has_version() -> None:
    ready = Ready(agents=("a",), address="h:1", task_queue="q", version="desk:7")
    assert ready.line() == "ready: a on task queue 'q' of h:1, version desk:7"


def test_ready_line_has_agents_and_addresses() -> None:
    ready = Ready(agents=("a", "b"), address="h:1", task_queue="q", health="h:2")
    assert ready.line() == "ready: a, b on task queue 'q' of h:1; health on http://h:2"


def plan(monkeypatch: pytest.MonkeyPatch, address: str, **given: object) -> Plan:
    monkeypatch.setenv("PERDURE_ADDRESS", address)
    asked = {"files": ["a.py"], "port": None, "ui_port": None, "headless": False, "db": None}
    return make_plan(argparse.Namespace(**{**asked, "task_queue": None, **given}))


def test_dev_uses_port_of_local_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERDURE_HOME", str(tmp_path))
    here, elsewhere = plan(monkeypatch, "localhost:7300"), plan(monkeypatch, "temporal.example:7300")
    assert (here.port, here.ui_port) == (7300, 8300)
    assert (elsewhere.port, elsewhere.ui_port) == (7233, 8233)
    chosen = plan(monkeypatch, "localhost:7300", port=1234, headless=True, db=Path("~/x.db"))
    assert (chosen.port, chosen.ui_port, chosen.db) == (1234, False, Path.home() / "x.db")
    assert here.db == tmp_path / "temporal.db"


def test_skew_excludes_time_of_request() -> None:
    assert _skew(105.0, 100.0, 110.0).verdict == "ok"
    ahead, behind = _skew(40.0, 100.0, 110.0), _skew(170.0, 100.0, 110.0)
    assert (ahead.verdict, "60 s ahead of" in ahead.text) == ("warn", True)
    assert (behind.verdict, "60 s behind" in behind.text) == ("warn", True)


def test_keys_are_reported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    monkeypatch.delenv("PERDURE_OPENAI_API_KEY", raising=False)
    settings = load_settings()
    assert _key_of(settings, "openai", ("OTHER_KEY", "SOME_KEY")) == "SOME_KEY"
    assert _key_of(settings, "openai", ("OTHER_KEY",)) is None
    configured = load_settings(openai_api_key="secret")
    assert _key_of(configured, "openai", ("OTHER_KEY",)) == "PERDURE_OPENAI_API_KEY in .env"


def test_dev_ignores_tests_and_environments(tmp_path: Path) -> None:
    (tmp_path / "venv" / "lib").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "tests").mkdir()
    assert _belongs_to_agents(tmp_path / "agent.py", [tmp_path])
    assert _belongs_to_agents(tmp_path / "package" / "tools.py", [tmp_path])
    assert not _belongs_to_agents(tmp_path / "tests" / "test_agent.py", [tmp_path])
    assert not _belongs_to_agents(tmp_path / "venv" / "lib" / "thing.py", [tmp_path])
    assert _belongs_to_agents(tmp_path / "tests" / "agent.py", [tmp_path / "tests"]), "if it lives there"
