import io
import json
import logging
from collections.abc import Generator
from typing import Any

import pytest
import structlog

from perdure.settings import Settings, load_settings
from perdure.workers.observe.logs import configure_logs


@pytest.fixture(autouse=True)
def _as_before() -> Generator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings(anthropic_api_key="from-a-dotenv-file", log_format="json")


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_log_line_has_run_fields(settings: Settings) -> None:
    stream = io.StringIO()
    configure_logs(settings, stream)
    with structlog.contextvars.bound_contextvars(run_id="run-1", step=3):
        structlog.get_logger("ours").info("asked", tokens=12)
        logging.getLogger("a.library").warning("slow: %d s", 9, extra={"host": "example"})
    ours, library = _lines(stream)
    assert ours["event"] == "asked"
    assert (ours["tokens"], ours["level"]) == (12, "info")
    assert library["event"] == "slow: 9 s"
    assert (library["host"], library["logger"]) == ("example", "a.library")
    for line in (ours, library):
        assert (line["run_id"], line["step"]) == ("run-1", 3)
        assert line["timestamp"].endswith("Z")


def test_temporal_log_fields_get_our_names(settings: Settings) -> None:
    stream = io.StringIO()
    configure_logs(settings, stream)
    known = {"workflow_id": "run-7", "run_id": "01a", "attempt": 2, "namespace": "default"}
    logging.getLogger("temporalio.workflow").warning("retried", extra={"temporal_workflow": known})
    (line,) = _lines(stream)
    assert (line["run_id"], line["temporal_run_id"], line["attempt"]) == ("run-7", "01a", 2)
    assert "temporal_workflow" not in line


def test_secrets_are_redacted_everywhere(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_PASSWORD", "hunter2hunter2")
    stream = io.StringIO()
    configure_logs(settings, stream)
    try:
        raise ValueError("refused from-a-dotenv-file")
    except ValueError:
        logging.getLogger("x").exception("with hunter2hunter2")
    structlog.get_logger("y").error(
        "nested", a={"b": ["from-a-dotenv-file", ("hunter2hunter2",)]}, settings=settings
    )
    structlog.get_logger("y").error("sk-abcdefghijklmnop1234")
    written = stream.getvalue()
    assert len(_lines(stream)) == 3
    assert "Traceback" in written
    for secret in ("from-a-dotenv-file", "hunter2hunter2", "sk-abcdefghijklmnop1234"):
        assert secret not in written


def test_noisy_libraries_log_only_warnings(settings: Settings) -> None:
    stream = io.StringIO()
    configure_logs(settings, stream)
    structlog.get_logger("ours").debug("not heard")
    logging.getLogger("httpx").info("GET https://...")
    logging.getLogger("httpx").warning("heard")
    assert [line["event"] for line in _lines(stream)] == ["heard"]


def test_configuring_twice_repeats_no_line(settings: Settings) -> None:
    stream = io.StringIO()
    configure_logs(settings, io.StringIO())
    configure_logs(settings, stream)
    logging.getLogger("x").warning("once")
    assert len(_lines(stream)) == 1


def test_text_format_has_no_json() -> None:
    stream = io.StringIO()
    configure_logs(load_settings(log_format="text"), stream)
    logging.getLogger("x").warning("plain words")
    assert "plain words" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


@pytest.mark.parametrize(
    ("level", "captures"), [("debug", False), ("info", False), ("warning", True), ("debug", True)]
)
def test_libraries_quote_no_payload(settings: Settings, level: str, captures: bool) -> None:
    """What libraries write at debug holds payloads, and stays out of the log unless it is asked for."""
    stream = io.StringIO()
    wanted = settings.model_copy(update={"log_level": level, "capture_content": captures})
    try:
        configure_logs(wanted, stream)
        for name in ("temporalio.worker._activity", "anthropic._base_client", "openai._base_client"):
            logging.getLogger(name).debug("Request options: %s", {"content": "the patient's letter"})
        for name in ("temporalio.activity", "temporalio.workflow", "users.own"):
            logging.getLogger(name).debug("by the user's code")
        lines = _lines(stream)
        assert ("the patient's letter" in stream.getvalue()) is (captures and level == "debug")
        own = [line for line in lines if line["event"] == "by the user's code"]
        assert len(own) == (3 if level == "debug" else 0)
    finally:
        configure_logs(settings, io.StringIO())
