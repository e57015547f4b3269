"""Nothing disappears: every accepted message and every call is seen by a model, carried out, or named.

The oracle knows transcripts, results and what was started, and nothing of how the engine finds what is left.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from perdure.messages import Message, ToolCall, ToolResult
from perdure.wire.names import FINAL_ANSWER, HANDOFF
from perdure.workflows.engine.calls import NOT_ACCEPTED_YET
from perdure.workflows.engine.family import NOT_HEARD
from perdure.workflows.engine.state import AgentState

if TYPE_CHECKING:
    from .world import Shell, World

_UNREAD = "message not read: "
_UNREAD_ANSWER = "answer not read: "


def check_kept(world: "World") -> None:
    """Check a world in which every run has ended."""
    root = world.shells["root"]
    assert root.result is not None
    for text, sender in world.accepted.items():
        receivers = [*_upwards(world.shells[sender])]
        known = _is_read(world.shells.values(), text) or _is_named(root, text)
        assert known or any(shell.id in world.unheard_of for shell in receivers), f"{text!r} is lost"
    for shell in world.shells.values():
        if shell.result is None:
            continue  # it was ended by force
        for call, result, was_seen in _calls(shell):
            assert was_seen or _is_kept(world, shell, call, result), f"{call.name} of {shell.id} is lost"
        _check_passed_on(world, shell)


def _upwards(shell: "Shell") -> Iterator["Shell"]:
    above: Shell | None = shell
    while above is not None:
        yield above
        above = above.parent


def _is_named(shell: "Shell", text: str) -> bool:
    return any(text in line for line in _left_by(shell))


def _is_read(shells: Iterable["Shell"], text: str) -> bool:
    """Return whether a model has answered after it had read the text."""
    return any(
        text in message.text and _has_reply(shell.state.messages[at + 1 :])
        for shell in shells
        if isinstance(shell.state, AgentState)
        for at, message in enumerate(shell.state.messages)
        if message.role != "assistant"
    )


def _has_reply(messages: Iterable[Message]) -> bool:
    return any(message.role == "assistant" for message in messages)


def _calls(shell: "Shell") -> Iterator[tuple[ToolCall, ToolResult, bool]]:
    """Yield the run's calls with their results, and whether the model has answered after it had seen them."""
    if not isinstance(shell.state, AgentState):
        return
    messages = shell.state.messages[shell.state.transcript.own_start :]
    for at, message in enumerate(messages):
        for number, call in enumerate(message.tool_calls):
            yield call, messages[at + 1].tool_results[number], _has_reply(messages[at + 2 :])


def _is_kept(world: "World", shell: "Shell", call: ToolCall, result: ToolResult) -> bool:
    assert shell.result is not None
    if (shell.id, call.id) in world.ran:
        return True
    if call.name == HANDOFF and not result.is_error:
        return shell.result.stop_reason == "handoff"
    if not result.is_error:
        return True
    if call.name == FINAL_ANSWER and result.text == NOT_ACCEPTED_YET:
        return shell.result.output is not None
    left = shell.result.handed_on
    told = left is not None and f"{call.name}(" in left.done
    return told or any(line.startswith(f"{call.name}(") for line in _left_by(shell))


def _left_by(shell: "Shell") -> list[str]:
    """Return what the run and its turns have named."""
    assert shell.result is not None
    session = shell.state.session
    turns = [line for turn in session.answered for line in turn.reply.missing] if session else []
    return [*shell.result.missing, *turns]


def _check_passed_on(world: "World", shell: "Shell") -> None:
    """Check that what a run has left undone is known above, unless another run has taken over from it."""
    assert shell.result is not None
    parent = shell.parent
    if parent is None or parent.result is None:
        return
    lines = [NOT_HEARD] if shell.id in world.unheard_of else shell.result.missing
    later = [*world.shells.values()]
    later = [other for other in later[later.index(shell) + 1 :] if other.parent is parent]
    took_over = any(other.id.startswith(f"{shell.id}.") for other in later) or (
        shell.result.stop_reason == "handoff" and bool(later)
    )
    for line in lines:
        # Above, a message may be known without the key of the run that it was sent to, and an answer as a message.
        words = line[max(line.find(_UNREAD), 0) :]
        _, is_answer, answer = line.partition(_UNREAD_ANSWER)
        named = any(words in above or (is_answer and answer in above) for above in _left_by(parent))
        assert took_over or named or _is_read([parent], words), f"above {shell.id} nobody knows: {line}"
