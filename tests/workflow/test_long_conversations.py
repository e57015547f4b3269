"""The proof of long conversations, in small: three tasks in a session, and the page with the large one's figures."""

import json

from perdure.settings import Settings
from proofs.chaos.catalogue import GoldCall, Task, Turn
from proofs.conversations.__main__ import FOLDER, RESULTS
from proofs.conversations.play import play
from proofs.conversations.report import as_markdown
from proofs.conversations.script import SUMMARY_TOKENS, summarize
from proofs.conversations.sessions import make_sessions


def task(number: int) -> Task:
    """A task of three calls, whose results fill a third of a window together."""
    rows = "\n".join(f"row {number}.{row} of a table that nobody needs" for row in range(100))
    groups = tuple((GoldCall("look", {"at": n}, f'{{"page": {n}}}\n{rows}'),) for n in range(3))
    return Task(f"task-{number}", ("Shop",), (Turn(f"Look three times, {number}.", groups),))


async def test_read_back_reaches_what_has_left(settings: Settings) -> None:
    """Without `read_back` the clerk lacks a key that has left its window; with it every task is settled right."""
    sessions = make_sessions([task(number) for number in range(3)], length=3, count=1)
    ways = ("window", "window_read_back", "summary_read_back")
    scores = [await play(way, sessions, settings) for way in ways]
    assert [score.settled_right for score in scores] == [1, 2, 2]
    assert {score.need_key for score in scores} == {2}
    assert {(score.blind_steps, score.missing_calls) for score in scores} == {(0, 0)}


def test_summarizer_keeps_newest_within_bound() -> None:
    """The scripted summarizer keeps the newest facts, and never more than its bound."""
    lines = "\n".join(f'tool: look returned: {{"fact {n}": "{"x" * 40}"}}' for n in range(200))
    summary = summarize(
        f"<earlier_summary>\nold: 1\n</earlier_summary>\n<conversation>\n{lines}\n</conversation>"
    )
    assert len(summary.encode()) <= SUMMARY_TOKENS * 4
    assert summary.startswith("fact 199: ")
    assert "fact 0:" not in summary
    short = summarize(
        "<earlier_summary>\nold: 1\n</earlier_summary>\n<conversation>\nuser: hi\n</conversation>"
    )
    assert short == "old: 1"


def test_page_is_that_of_the_results() -> None:
    """The page of the documents is written from the stored results, and by nobody's hand."""
    stored = json.loads(RESULTS.read_text())
    assert (FOLDER / "README.md").read_text() == as_markdown(stored["head"], stored["scores"])
