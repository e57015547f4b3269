"""Scripted models: a clerk that knows only what it is sent, and a summarizer with a fixed rule.

The clerk plays a message's gold calls, a group in a step. To settle a task it needs a key. It uses the key only if the
key stands in the request at hand; else it reads back, where it may, and uses what came of that; else it gives up.
The summarizer sees what leaves the window, and keeps the newest facts of it up to a bound. It does not know what will
be asked for.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from perdure.messages import Message
from perdure.model import ModelRequest
from perdure.testing import Line, calls, says
from perdure.wire.names import READ_BACK

from .sessions import LongSession, Part

SUMMARY_TOKENS: Final = 600
_BYTES_PER_TOKEN: Final = 4
"""As the scripted model counts."""
_LONGEST_FACT: Final = 200
_TAG: Final = re.compile(r"^\[(s\d+\.t\d+\.m\d+)\]")
_EARLIER: Final = re.compile(r"<earlier_summary>\n(.*)\n</earlier_summary>", re.DOTALL)
_NEW: Final = re.compile(r"<conversation>\n(.*)\n</conversation>", re.DOTALL)
UNKNOWN: Final = "unknown"


@dataclass
class Clerk:
    """The model of the sessions. What it answered to a step it answers again."""

    sessions: Sequence[LongSession]
    began: dict[str, int] = field(default_factory=dict[str, int])
    """First step of each message, by its tag."""
    answers: dict[tuple[str, int], list[Line]] = field(default_factory=dict[tuple[str, int], "list[Line]"])
    blind: int = 0
    """Steps at which the message at work was not in the request."""

    def __call__(self, request: ModelRequest) -> list[Line]:
        """Answer a request."""
        if not request.tools:
            return [says(summarize(request.messages[0].text))]
        part = self._part(request.messages)
        if part is None:
            self.blind += 1
            return [says("I do not see what I am asked for.")]
        made = (part.tag, request.step)
        if made not in self.answers:
            self.answers[made] = self._answer(part, request)
        return self.answers[made]

    def _part(self, messages: Sequence[Message]) -> Part | None:
        tags = (_TAG.match(message.text) for message in reversed(messages) if message.role == "user")
        found = next((tag[1] for tag in tags if tag), None)
        if found is None:
            return None
        return self.sessions[int(found[1:].partition(".")[0])].part(found)

    def _answer(self, part: Part, request: ModelRequest) -> list[Line]:
        step = request.step - self.began.setdefault(part.tag, request.step)
        groups = [group for group in part.groups if group]
        if step < len(groups):
            return [
                calls("call_api", of=f"{part.tag}.{step}.{n}", name=call.name, arguments=call.arguments)
                for n, call in enumerate(groups[step])
            ]
        step -= len(groups)
        if not part.needs or self._has_settled(part, request.step):
            return [says(f"Message {part.tag} is done.")]
        key = find_key(request.messages, part.needs)
        reads_back = any(tool.name == READ_BACK for tool in request.tools)
        if key is None and reads_back and step == 0:
            return [calls(READ_BACK, words=f"key of case {part.needs}:")]
        return [calls("settle", case=part.task, session=part.session, key=key or UNKNOWN)]

    def _has_settled(self, part: Part, step: int) -> bool:
        before = self.answers.get((part.tag, step - 1), [])
        return any(call.name == "settle" for line in before for call in line.calls)


def find_key(messages: Iterable[Message], case: int) -> str | None:
    """Return the key of that case as the messages tell it, or None."""
    told = re.compile(rf"key of case {case}: (K-[0-9a-f]{{8}})")
    found = (told.search(message.text) for message in messages)
    return next((match[1] for match in found if match), None)


def summarize(text: str) -> str:
    """Return the summary: facts of the new messages, then the earlier summary's, newest first, up to the bound."""
    earlier, new = _EARLIER.search(text), _NEW.search(text)
    facts = [*reversed(list(_facts(new[1] if new else ""))), *(earlier[1] if earlier else "").splitlines()]
    kept: list[str] = []
    room = SUMMARY_TOKENS * _BYTES_PER_TOKEN
    for fact in dict.fromkeys(facts):
        room -= len(fact.encode()) + 1
        if room < 0:
            break
        kept.append(fact)
    return "\n".join(kept)


def _facts(text: str) -> Iterable[str]:
    """Yield the facts that results tell, a line each: `name: value` of JSON objects, and other lines as they are."""
    for line in text.splitlines():
        role, _, told = line.partition(" returned: ")
        if not told:
            told = "" if re.match(r"(user|assistant|tool): ", role) else role
        yield from (fact[:_LONGEST_FACT] for fact in _split(told) if fact)


def _split(text: str) -> Iterable[str]:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return [text.strip()]
    if not isinstance(value, dict):
        return [text.strip()]
    return [f"{name}: {json.dumps(item)}" for name, item in cast("dict[str, Any]", value).items()]
