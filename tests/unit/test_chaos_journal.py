"""The tools' journal: what was answered is on disk, and is known after any kill."""

from pathlib import Path

import pytest

from proofs.chaos.journal import Entry, Journal


def entry(number: int, key: str | None) -> Entry:
    return Entry(at=float(number), task="t", key=key, name="mv", arguments={"n": number}, result=f"r{number}")


def test_what_was_added_is_there_again_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for number in range(3):
        journal.add(entry(number, f"key-{number}"))
    journal.add_told("key-1")
    journal.close()
    again = Journal(tmp_path / "journal")
    assert again.entries == [entry(number, f"key-{number}") for number in range(3)]
    assert again.told == 1
    assert again.done("key-1") == entry(1, "key-1")
    assert again.done("key-9") is None
    again.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_kill_has_cut_is_dropped_and_the_next_is_written_whole(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.add(entry(1, "key-1"))
    whole = path.stat().st_size
    journal.add(entry(2, "key-2"))
    journal.close()
    with path.open("r+b") as file:
        file.truncate(whole + cut)
    again = Journal(path)
    assert again.entries == [entry(1, "key-1")]
    again.add(entry(3, "key-3"))
    again.close()
    last = Journal(path)
    assert last.entries == [entry(1, "key-1"), entry(3, "key-3")]
    last.close()


def test_calls_without_a_key_are_never_taken_for_one_that_was_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(entry(1, None))
    assert journal.done(None) is None
    journal.close()
