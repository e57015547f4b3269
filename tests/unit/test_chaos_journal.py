"""The tools' journal: every answered effect is on disk, and is known after any kill."""

from pathlib import Path

import pytest

from proofs.chaos.journal import Entry, Journal


def entry(number: int, key: str | None) -> Entry:
    return Entry(at=float(number), task="t", key=key, name="mv", arguments={"n": number}, result=f"r{number}")


def test_entries_survive_reopening(tmp_path: Path) -> None:
    """Entries and repeats are read again in order, and are found by their keys."""
    journal = Journal(tmp_path / "journal")
    for number in range(3):
        journal.add(entry(number, f"key-{number}"))
    journal.add_repeat("key-1")
    journal.close()
    again = Journal(tmp_path / "journal")
    assert again.entries == [entry(number, f"key-{number}") for number in range(3)]
    assert again.repeats == 1
    assert again.find("key-1") == entry(1, "key-1")
    assert again.find("key-9") is None
    again.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_cut_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    """A line that a kill cut is dropped, and the next line is written in full."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.add(entry(1, "key-1"))
    complete = path.stat().st_size
    journal.add(entry(2, "key-2"))
    journal.close()
    with path.open("r+b") as file:
        file.truncate(complete + cut)
    again = Journal(path)
    assert again.entries == [entry(1, "key-1")]
    again.add(entry(3, "key-3"))
    again.close()
    last = Journal(path)
    assert last.entries == [entry(1, "key-1"), entry(3, "key-3")]
    last.close()


def test_calls_without_key_never_match(tmp_path: Path) -> None:
    """A call without a key is never taken for an earlier one."""
    journal = Journal(tmp_path / "journal")
    journal.add(entry(1, None))
    assert journal.find(None) is None
    journal.close()
