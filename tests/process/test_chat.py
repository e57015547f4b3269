"""`perdure chat` as people and scripts use it: at a terminal of its own, and through pipes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.workers.dev.server import DevServer

from .shell import Shell

AGENTS = '''
import asyncio

from perdure import Agent, Swarm, ask_person, tool
from perdure.testing import ScriptedModel, calls, fails, says


@tool(approval=True, effect="write")
async def refund(order_id: str) -> str:
    """Pay an order back."""
    return f"paid back {order_id}"


async def script(request):
    last = request.messages[-1]
    if last.role == "tool":
        return says(", ".join(result.text for result in last.tool_results) + " indeed")
    if last.text == "paint":
        return [calls("ask_person", question=f"Colour of the {room}?") for room in ("hall", "roof")]
    if last.text.startswith("refund"):
        return calls("refund", order_id="W1")
    if last.text == "hang":
        await asyncio.sleep(60)
    if last.text == "fail":
        return fails("bad_request", "no such thing")
    count = sum(message.role == "user" for message in request.messages)
    return says(f"Message {count} was: {last.text}")


clerk = Agent(name="clerk", model="clerk:x", tools=[refund, ask_person], on_failure="fail")


def desk_script(request):
    if request.config.model == "front" and request.messages[-1].role == "user":
        return calls("refund", order_id="W1") if "refund" in request.messages[-1].text else hand_over()
    if request.config.model == "front":
        return hand_over()
    known = [message.text for message in request.messages if message.text.startswith("Message")]
    return says(f"Message {len(known) + 1} at the desk")


def hand_over():
    return calls("handoff_to_agent", agent_name="back", message="your turn")


front = Agent(name="front", model="desk:front", tools=[refund])
desk = Swarm(name="desk", agents=[front, Agent(name="back", model="desk:back")])
models = {"clerk": ScriptedModel(script), "desk": ScriptedModel(desk_script)}
'''


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, server: DevServer) -> Iterator[Shell]:
    """A shell whose settings lead to the session's server, and a worker that serves `AGENTS`."""
    folder = tmp_path_factory.mktemp("chat")
    variables = {"PERDURE_ADDRESS": server.address, "PERDURE_TASK_QUEUE": f"chat-{time.time_ns()}"}
    made = Shell(folder, variables)
    made.write("desk.py", AGENTS)
    made.start("worker", "desk.py").says("ready:")
    yield made
    made.close()


def test_terminal_chat_is_resumed(shell: Shell) -> None:
    """A chat at a terminal can be left and resumed."""
    with shell.terminal("chat", "clerk", "--session", "at-terminal", "--user", "ann") as terminal:
        terminal.says("session at-terminal")
        terminal.says("you>")
        terminal.types("hello\n")
        terminal.says("Message 1 was: hello")
        terminal.says("you>")
        terminal.types("/status\n")
        terminal.says("idle")
        terminal.says("you>")
        terminal.types("/nonsense\n")
        terminal.says("no command '/nonsense'")
        terminal.says("you>")
        terminal.types("\x04")
        terminal.says("come back: perdure chat --session at-terminal")
        assert terminal.ends() == 0
    with shell.terminal("chat", "--session", "at-terminal") as terminal:
        terminal.says("Message 1 was: hello")
        terminal.says("you>")
        terminal.types("\x1b[A\n")
        terminal.says("Message 2 was: hello")
        terminal.says("you>")
        terminal.types("/close\n")
        terminal.says("is closed")
        assert terminal.ends() == 0
    assert "Traceback" not in terminal.said


def test_approvals_are_given_within_the_chat(shell: Shell) -> None:
    with shell.terminal("chat", "clerk", "--session", "approvals") as terminal:
        terminal.says("you>")
        terminal.types("refund W1\n")
        terminal.says("approve call-1-1? [y]es, [n]o and why, [d]etach:")
        terminal.types("y\n")
        terminal.says("paid back W1 indeed")
        terminal.says("you>")
        terminal.types("refund W1\n")
        terminal.says("approve call-3-1?")
        terminal.types("n not today\n")
        terminal.says("not today indeed")
        terminal.says("you>")
        terminal.types("/quit\n")
        assert terminal.ends() == 0
    assert "Traceback" not in terminal.said


def test_chat_asks_which_question_is_answered(shell: Shell) -> None:
    """With two questions open a line says which it answers; the chat shows which one is still open."""
    with shell.terminal("chat", "clerk", "--session", "two-questions") as terminal:
        terminal.says("you>")
        terminal.types("paint\n")
        terminal.says("number and answer (empty: detach):")
        terminal.types("red\n")
        terminal.says("number and answer (empty: detach):")
        terminal.types("2 red\n")
        terminal.says("still open: call-1-1  Colour of the hall?")
        terminal.says("your answer (empty: detach):")
        terminal.types("white\n")
        terminal.says("white, red indeed")
        terminal.says("you>")
        terminal.types("/quit\n")
        assert terminal.ends() == 0
    assert terminal.said.count("2 questions wait; begin your answer with its number:") == 2


def test_piped_chat_answers_questions(shell: Shell) -> None:
    """A line of a pipe answers the question of the turn; a turn that has no line left waits, and says so."""
    whole = shell.perdure(
        "chat", "clerk", "--session", "piped-answers", stdin="paint\nred\n2 red\nwhite\nhello\n"
    )
    assert (whole.code, whole.out) == (0, "white, red indeed\nMessage 2 was: hello\n"), whole.err
    assert "the agent asks: Colour of the hall?" in whole.err
    cut = shell.perdure("chat", "clerk", "--session", "piped-short", stdin="paint\n1 white\n")
    assert (cut.code, cut.out) == (4, "")
    assert "the turn waits for an answer; go on with: perdure chat --session piped-short" in cut.err
    rest = shell.perdure("send", "piped-short", "red")
    assert rest.out == "answered 'call-1-2'\n"


def test_chat_with_swarm(shell: Shell) -> None:
    """A chat with a swarm shows each answer once, and takes approvals of the agents below."""
    with shell.terminal("chat", "desk", "--session", "with-swarm") as terminal:
        terminal.says("you>")
        terminal.types("hello\n")
        terminal.says("Message 1 at the desk")
        terminal.says("you>")
        terminal.types("refund W1\n")
        terminal.says("approve")
        terminal.types("y\n")
        terminal.says("Message 2 at the desk")
        terminal.says("you>")
        terminal.types("/quit\n")
        assert terminal.ends() == 0
    assert "Traceback" not in terminal.said
    assert terminal.said.count("Message 2 at the desk") == 1
    piped = shell.perdure("chat", "--session", "with-swarm", stdin="and now?\n")
    assert piped.out == "Message 3 at the desk\n", piped.err


def test_ctrl_c_ends_turn_not_chat(shell: Shell) -> None:
    """Ctrl-C ends the turn, not the chat."""
    with shell.terminal("chat", "clerk", "--session", "chat-interrupted") as terminal:
        terminal.says("you>")
        terminal.types("hello\n")
        terminal.says("Message 1 was: hello")
        terminal.says("you>")
        terminal.types("hang\n")
        terminal.says("waiting for the model")
        terminal.types("\x03")
        terminal.says("the turn ended early: stopped")
        terminal.says("you>")
        terminal.types("\x03")
        terminal.says("(Ctrl-D leaves)")
        terminal.says("you>")
        terminal.types("still there?\n")
        terminal.says("Message 3 was: still there?")
        terminal.says("you>")
        terminal.types("\x04")
        assert terminal.ends() == 0
    assert "Traceback" not in terminal.said


def test_ctrl_c_at_question_ends_turn(shell: Shell) -> None:
    with shell.terminal("chat", "clerk", "--session", "question-interrupted") as terminal:
        terminal.says("you>")
        terminal.types("refund W1\n")
        terminal.says("approve call-1-1?")
        terminal.types("\x03")
        terminal.says("the turn ended early: stopped")
        terminal.says("you>")
        terminal.types("still there?\n")
        terminal.says("still there?")
        terminal.says("you>")
        terminal.types("/quit\n")
        assert terminal.ends() == 0
    assert "Traceback" not in terminal.said


def test_a_chat_needs_no_prompt_toolkit(shell: Shell, tmp_path: Path) -> None:
    """The terminal edits the line; questions are put and taken back all the same."""
    (tmp_path / "prompt_toolkit.py").write_text("raise ImportError\n")
    plain = Shell(shell.folder, {**shell.variables, "PYTHONPATH": str(tmp_path)})
    with plain.terminal("chat", "clerk", "--session", "plain") as terminal:
        terminal.says("you> ")
        terminal.types("refund W1\n")
        terminal.says("approve call-1-1? [y]es, [n]o and why, [d]etach:")
        terminal.types("y\n")
        terminal.says("paid back W1 indeed")
        terminal.says("you> ")
        terminal.types("refund W1\n")
        terminal.says("approve call-3-1?")
        assert shell.perdure("approve", "plain").code == 0
        terminal.says("paid back W1 indeed")
        terminal.says("you> ")
        terminal.types("\x04")
        terminal.says("come back: perdure chat --session plain")
        assert terminal.ends() == 0
    assert "Traceback" not in terminal.said
    with plain.terminal("chat", "--session", "plain") as terminal:
        terminal.says("you> ")
        terminal.types("\x03")
        assert terminal.ends() == 130
    assert "Traceback" not in terminal.said


def test_chat_resumes_in_mid_turn(shell: Shell) -> None:
    """A chat that was left in mid-turn resumes there."""
    with shell.terminal("chat", "clerk", "--session", "picked-up") as terminal:
        terminal.says("you>")
        terminal.types("refund W1\n")
        terminal.says("approve call-1-1?")
        terminal.types("d\n")
        terminal.says("come back")
        assert terminal.ends() == 0
    with shell.terminal("chat", "--session", "picked-up") as terminal:
        terminal.says("approve call-1-1?")
        terminal.types("y\n")
        terminal.says("paid back W1 indeed")
        terminal.says("you>")
        terminal.types("/quit\n")
        assert terminal.ends() == 0


def test_ones_open_sessions_are_offered(shell: Shell) -> None:
    for name in ("one", "two"):
        assert shell.perdure("chat", "clerk", "--session", name, "--user", "eva", stdin="x\n").code == 0
    with shell.terminal("chat", "--resume", "--user", "eva") as terminal:
        terminal.says("which?")
        assert {"one", "two"} <= set(terminal.said.split())
        terminal.types("1\n")
        terminal.says("you>")
        terminal.types("again\n")
        terminal.says("Message 2 was: again")
        terminal.types("/quit\n")
        assert terminal.ends() == 0
    nobody = shell.perdure("chat", "--resume", "--user", "nobody-ever")
    assert nobody.code == 2
    assert "no open session" in nobody.err


def test_piped_line_is_a_turn(shell: Shell) -> None:
    """Through a pipe, each line is a turn."""
    said = shell.perdure("chat", "clerk", "--session", "piped", stdin="hello\n\nhow are you?\n")
    assert said.code == 0, said.err
    assert said.out == "Message 1 was: hello\nMessage 2 was: how are you?\n"
    assert "session piped" in said.err
    again = shell.perdure("chat", "--session", "piped", "--json", stdin="and now?\n")
    assert json.loads(again.out)["turn"] == 3
    failed = shell.perdure("chat", "--session", "piped", stdin="fail\n")
    assert failed.code == 1
    assert "bad_request" in failed.err


def test_new_chat_id_names_its_user(shell: Shell) -> None:
    """A chat without an id gets one that names its user."""
    said = shell.perdure("chat", "clerk", "--user", "Ann Lee", stdin="hello\n")
    assert said.code == 0
    assert "session clerk-Ann-Lee-" in said.err


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["chat"], 2, "name an agent or a session"),
        (["chat", "--session", "no-such-session"], 2, "no-such-session"),
        (["chat", "nobody", "--session", "wrong-agent"], 3, "no worker serves 'nobody'"),
    ],
)
def test_impossible_chat_says_why(shell: Shell, words: list[str], code: int, why: str) -> None:
    """A chat that cannot begin ends with the reason; one that only waits for a worker, with the code of that."""
    said = shell.perdure(*words, stdin="hello\n")
    assert said.code == code
    assert why in said.err
    assert "Traceback" not in said.err


def test_closed_session_reopens_only_on_request(shell: Shell) -> None:
    """A closed session is opened again only on request."""
    assert shell.perdure("chat", "clerk", "--session", "closed", stdin="x\n").code == 0
    assert shell.perdure("stop", "closed").code == 0
    refused = shell.perdure("chat", "clerk", "--session", "closed", stdin="y\n")
    while "is over" not in refused.err:  # the stop takes a moment
        assert refused.code == 0, refused.err
        refused = shell.perdure("chat", "clerk", "--session", "closed", stdin="y\n")
    assert "--new" in refused.err
    anew = shell.perdure("chat", "clerk", "--session", "closed", "--new", stdin="y\n")
    assert anew.out == "Message 1 was: y\n"
