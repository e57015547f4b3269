"""Settings, price tables and blob names: what is written wrongly is told with its place, and does nothing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perdure import prices, settings
from perdure.activities.content.blobs import FileBlobs, open_store
from perdure.activities.heartbeat import last_progress
from perdure.errors import DefinitionError
from perdure.messages import Usage
from perdure.wire.effects import Progress

from . import junk
from .depth import examples

NAMES = sorted({name for field in settings.Settings.model_fields for name in settings.variables(field)})
VALUES = [
    "1", "-1", "0", "yes", "localhost:7233", "[::1]:1", "h:99999", "h:٣", "file:", "file:/x", "s3://", "s3://b/p",
    "150ms", "9" * 400 + "h", "99999999999999999h", "1e400s", "nan", "~/x", "~nobody/x", "http://x", "debug",
    "prometheus", "9" * 5000, "{", "a\udcffb",
]  # fmt: skip
texts = st.sampled_from(VALUES) | junk.texts
in_environment = texts.filter(lambda text: "\0" not in text and "\ud800" not in text and "\ud83d" not in text)
SECRET = "sk-a-secret-that-nobody-sees"


def _loaded() -> settings.Settings | None:
    try:
        return settings.load_settings()
    except DefinitionError as error:
        assert str(error).startswith("settings: ")
        assert SECRET not in str(error)
        assert len(str(error)) < 6000
        return None


@examples(200)
@given(st.dictionaries(st.sampled_from(NAMES), in_environment, max_size=4))
def test_bad_environment_names_variable(
    tmp_path_factory: pytest.TempPathFactory, given_values: dict[str, str]
) -> None:
    """An environment is read, or the error names the variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp())
        patch.setenv("PERDURE_ANTHROPIC_API_KEY", SECRET)
        for name, value in given_values.items():
            patch.setenv(name, value)
        found = _loaded()
        if found is not None:
            assert SECRET not in repr(found)
            assert found.progress_interval.total_seconds() > 0


lines = st.tuples(st.sampled_from(NAMES), texts).map(
    lambda pair: f"{pair[0]}={pair[1]}".encode(errors="replace")
)


@examples(100)
@given(st.lists(lines | st.binary(max_size=20), max_size=4))
@pytest.mark.filterwarnings("ignore")
def test_settings_file_is_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "env"
    folder.mkdir(exist_ok=True)
    (folder / ".env").write_bytes(b"\n".join(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _loaded()


TABLE = {
    "version": "1",
    "entries": [
        {
            "model": "a:*",
            "effective": "2026-01-01",
            "price": {"input": 1, "output": 2, "cache_read": 0, "cache_write": 3},
        }
    ],
}
tables = st.builds(junk.mutated, st.just(TABLE), st.integers(0, 99), junk.news) | junk.anything


@examples(150)
@given(tables.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30))
def test_price_table_is_complete_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "prices.json"
    path.write_bytes(content)
    try:
        table = prices.load_prices(path)
    except DefinitionError as error:
        assert "prices.json" in str(error)
    else:
        for entry in table.entries:
            assert entry.price.cost_microusd(Usage(input_tokens=3, output_tokens=5)) >= 0


@examples(150)
@given(junk.texts | st.sampled_from(["0" * 64 + "\n", "../" + "0" * 61, "A" * 64, "0" * 63, "/etc/passwd"]))
async def test_no_name_leaves_the_store(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """No name leads to a file outside the store."""
    root = tmp_path_factory.getbasetemp() / "blobs"
    with pytest.raises(KeyError):
        await FileBlobs(root).get(name)
    assert not root.exists()


@examples(100)
@given(st.sampled_from(["", "file:", "s3://", "s3://["]), junk.texts)
@example("file:", "~0")
def test_store_opens_or_address_is_rejected(scheme: str, rest: str) -> None:
    try:
        open_store(scheme + rest)
    except DefinitionError as error:
        assert "blob store" in str(error)


PROGRESS = Progress(call="step-1", attempt=1, seq=1, text="so far", spent=Usage(input_tokens=3)).model_dump()


@examples(150)
@given(
    st.lists(
        st.builds(junk.mutated, st.just(PROGRESS), st.integers(0, 99), junk.news) | junk.anything, max_size=3
    )
)
def test_next_start_survives_any_leftovers(details: list[Any]) -> None:
    """A start survives whatever files an earlier one left behind."""
    with pytest.MonkeyPatch.context() as patch:
        info = SimpleNamespace(heartbeat_details=details)
        patch.setattr("perdure.activities.heartbeat.activity.info", lambda: info)
        found = last_progress()
        assert found is None or isinstance(found, Progress)


def test_settings_folder_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").mkdir()
    monkeypatch.chdir(tmp_path)
    assert settings.load_settings().namespace == "default"
