"""Report: the page with the figures of the last run, beside the commands that made them."""

import json
from pathlib import Path
from typing import Any

from .play import PRICED_AS, WINDOW_TOKENS
from .script import SUMMARY_TOKENS
from .sessions import DISTANCES

_TITLES = {
    "window": "sliding window",
    "window_read_back": "sliding window, `read_back`",
    "summary": "summary",
    "summary_read_back": "summary, `read_back`",
}


def write(file: Path, page: Path) -> None:
    """Write the page from the stored results."""
    stored = json.loads(file.read_text())
    page.write_text(as_markdown(stored["head"], stored["scores"]))


def as_markdown(head: dict[str, Any], scores: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    some = next(iter(scores.values()))
    size = f"{some['sessions']} sessions, {some['tasks']} tasks, {some['turns']} turns"
    run = f"python -m proofs.conversations run --sessions {some['sessions']} --length {head['length']}"
    wrong = sum(score["missing_calls"] for score in scores.values())
    rows = "".join(_row(way, score) for way, score in scores.items())
    return f"""# Long conversations

<!-- Written by `python -m proofs.conversations report`: do not edit it. -->

Sessions of {head["length"]} public tasks each were played under each way to keep a conversation within a window of
{WINDOW_TOKENS:,} tokens: {size}. The tasks are the base tasks of BFCL's multi-turn set.

```sh
{run}
python -m proofs.conversations report
```

| way | settled right | model calls | tool calls | tokens read | tokens written | cost | steps blind |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}
## How it is played

- **What a task needs.** The result of a task's first call holds a key, which stands nowhere else. From the second task
  on, the last message of a task asks to settle it with the key of an earlier one, {_row_of_distances()} tasks before.
  A task is settled right when the key is right.
- **The model** is scripted, and sees only what it is sent. It plays the set's gold calls. It uses a key only if the key
  stands in the request, or came by `read_back`. Otherwise it settles with "unknown". It searches for the words
  `key of case N:`. The answer also shows messages with some of these words, so one search may serve later tasks too.
- **The summarizer** is scripted. It sees what leaves the window and the earlier summary. It keeps the newest facts that
  results tell, up to {SUMMARY_TOKENS} tokens. It does not know what will be asked for. Its calls count in the tokens
  and the cost, and not as model calls of the clerk.
- **The APIs** are reached by one tool, so that the window holds the conversation and not a hundred schemas. It answers
  what the set's own objects have answered.
- **Blind** is a step at which the request in hand is not in what the model sees.
- **Tokens** are the scripted model's, at four bytes a token. The cost is that of these tokens at the price of
  `{PRICED_AS}`, without a prompt cache.

Gold calls that were missing or repeated: {wrong}. The machine had {head["cores"]} cores and Python {head["python"]}
({head["at"]}).
"""


def _row(way: str, score: dict[str, Any]) -> str:
    right, needed = score["settled_right"], score["need_key"]
    cells = [
        _TITLES[way],
        f"{right} of {needed} ({right / max(needed, 1):.0%})",
        *(f"{score[name]:,}" for name in ("model_calls", "tool_calls", "input_tokens", "output_tokens")),
        f"${score['cost_usd']:.2f}",
        str(score["blind_steps"]),
    ]
    return f"| {' | '.join(cells)} |\n"


def _row_of_distances() -> str:
    *first, last = map(str, DISTANCES)
    return f"{', '.join(first)} or {last}"
