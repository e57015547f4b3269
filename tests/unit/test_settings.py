from datetime import timedelta
from pathlib import Path

import pytest

from perdure import settings as module
from perdure.errors import DefinitionError
from perdure.settings import Settings, document, load_settings, variables


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        for variable in variables(name):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)  # no `.env` of the machine


def test_settings_page_is_generated() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text() == document(), "run: python -m perdure.settings > docs/settings.md"


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_precedence_of_settings_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "temporal:1")
    assert load_settings().address == "temporal:1"
    monkeypatch.delenv("TEMPORAL_ADDRESS")
    Path(".env").write_text("PERDURE_ADDRESS=file:2\nPERDURE_TASK_QUEUE=from-file\nPERDURE_UNKNOWN=1\n")
    assert (load_settings().address, load_settings().task_queue) == ("file:2", "from-file")
    monkeypatch.setenv("PERDURE_ADDRESS", "environment:3")
    assert load_settings().address == "environment:3"
    assert load_settings(address="argument:4").address == "argument:4"
    assert load_settings(address=None).address == "environment:3"


def test_blobs_are_in_home_by_default(tmp_path: Path) -> None:
    assert load_settings(home=tmp_path).blob_store == f"file:{tmp_path}/blobs"
    assert load_settings(home="~/there").home == Path.home() / "there"
    assert load_settings(blob_store="s3://bucket/prefix").blob_store == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("150ms", timedelta(milliseconds=150)),
        ("2s", timedelta(seconds=2)),
        ("1.5m", timedelta(seconds=90)),
        ("1h", timedelta(hours=1)),
        ("0.25", timedelta(milliseconds=250)),
        ("PT3S", timedelta(seconds=3)),
    ],
)
def test_durations_have_units(monkeypatch: pytest.MonkeyPatch, written: str, meant: timedelta) -> None:
    monkeypatch.setenv("PERDURE_PROGRESS_INTERVAL", written)
    assert load_settings().progress_interval == meant


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PERDURE_ADDRESS", "nowhere", "host:port"),
        ("PERDURE_ADDRESS", "http://host:1", "host:port"),
        ("PERDURE_PROGRESS_INTERVAL", "soon", "timedelta"),
        ("PERDURE_PROGRESS_INTERVAL", "0s", "greater than"),
        ("PERDURE_BLOB_STORE", "ftp://x", "s3://bucket/prefix"),
        ("PERDURE_METRICS", "statsd", "'prometheus'"),
        ("PERDURE_TLS_KEY", "/key", "together"),
        ("PERDURE_BUILD_ID", "1", "PERDURE_DEPLOYMENT_NAME"),
        ("PERDURE_DEPLOYMENT_NAME", "desk.1", 'no "." or ":"'),
        ("PERDURE_MAX_CONCURRENT_ACTIVITIES", "many", "integer"),
        ("PERDURE_PROGRESS_INTERVAL", "99999999999999999h", "is too long"),
        ("PERDURE_HOME", "~nobody-of-this-name/x", "no such home"),
    ],
)
def test_wrong_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(DefinitionError) as caught:
        load_settings()
    message = str(caught.value)
    assert variable in message
    assert says in message
    assert repr(value) in message
    assert "\n" not in message
    assert "BLOB_STORE" not in message.replace(variable, "")


def test_binary_env_file_is_refused() -> None:
    Path(".env").write_bytes(b"PERDURE_ADDRESS=\xff")
    with pytest.raises(DefinitionError, match=r"settings: \.env cannot be read"):
        load_settings()


def test_unknown_override_is_refused() -> None:
    with pytest.raises(DefinitionError, match="no such setting: adress"):
        load_settings(adress="typo:1")


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_API_KEY", "very-secret")
    settings = load_settings(anthropic_api_key="also-secret")
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "very-secret"
    shown = f"{settings!r} {settings} {settings.model_dump_json()}"
    assert "very-secret" not in shown
    assert "also-secret" not in shown
    with pytest.raises(DefinitionError) as caught:
        load_settings(openai_api_key=b"\xffwrong-secret")
    assert "PERDURE_OPENAI_API_KEY" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


def test_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_TASK_QUEUE", "")
    settings = load_settings()
    assert settings.task_queue == "perdure"
    with pytest.raises(ValueError, match="frozen"):
        settings.task_queue = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_worker_controller_variables_name_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_DEPLOYMENT_NAME", "agents")
    monkeypatch.setenv("TEMPORAL_WORKER_BUILD_ID", "v7")
    assert (load_settings().deployment_name, load_settings().build_id) == ("agents", "v7")


def test_settings_import_only_vocabulary() -> None:
    source = Path(str(module.__file__)).read_text()
    ours = {line.split()[1] for line in source.splitlines() if line.startswith("from perdure")}
    assert ours == {"perdure.definitions", "perdure.errors"}
