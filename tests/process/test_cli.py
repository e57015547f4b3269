"""The command line as people and scripts use it: real processes, a real server, a real worker."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.starter.cli import app as cli
from perdure.workers.dev.server import DevServer, free_port
from tests.conftest import own_server
from tests.waiting import wait_for

from .shell import AGENTS, Background, Said, Shell


@pytest.fixture(scope="module")
def own() -> Iterator[DevServer]:
    """A server of its own: lists and the doctor tell of all runs there."""
    yield from own_server({})


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, own: DevServer) -> Iterator[Shell]:
    """A shell whose settings lead to that server, and a worker that serves `AGENTS`."""
    folder = tmp_path_factory.mktemp("cli")
    variables = {"PERDURE_ADDRESS": own.address, "PERDURE_TASK_QUEUE": f"cli-{time.time_ns()}"}
    made = Shell(folder, variables)
    made.write("desk.py", AGENTS)
    made.start("worker", "desk.py").says("ready: support, payer, twice")
    yield made
    made.close()


Here = Callable[..., Said]


@pytest.fixture
def here(shell: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """`perdure WORDS` within this process: the same without what a process costs."""
    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(shell.folder)

    def call(*words: str) -> Said:
        monkeypatch.setattr("sys.argv", ["perdure", *words])
        capfd.readouterr()
        code = cli.run()
        told = capfd.readouterr()
        return Said(code=code, out=told.out, err=told.err)

    return call


def started(shell: Shell, agent: str, task_queue: str | None = None) -> str:
    """The id of a run that has been started and left alone."""
    variables = shell.variables
    return shell.start_run(agent, variables["PERDURE_ADDRESS"], task_queue or variables["PERDURE_TASK_QUEUE"])


def until_it_is(shell: Shell, run: str, *statuses: str) -> None:
    """Wait until the run has one of the statuses."""
    shell.until_it_is(run, shell.variables["PERDURE_ADDRESS"], *statuses)


def test_stdout_is_the_output_alone(shell: Shell) -> None:
    """Without a terminal, stdout is the run's output alone; the rest is on stderr."""
    said = shell.perdure("run", "support", "Where is 1?", "--user", "ann", "--id", "cli-plain")
    assert (said.code, said.out) == (0, "It is on its way.\n"), said.err
    assert "run cli-plain\n" in said.err
    assert '→ order_status(order_id="1")\n✓ order_status: 1 is on its way\n' in said.err
    assert re.search(r"✓ end_turn · 2 steps · 1 tool call · [\d,]+ tokens · cost unknown\n", said.err)
    assert "\x1b" not in said.out + said.err


def test_json_run_has_event_a_line(shell: Shell) -> None:
    """A run as JSON prints an event a line."""
    events = shell.perdure("run", "support", "--file", "-", "--json", stdin="Where is 1?").lines
    kinds = [event["kind"] for event in events]
    assert {"text", "message", "tool_started", "tool_finished", "status"} <= set(kinds)
    assert kinds.index("tool_started") < kinds.index("tool_finished")
    assert kinds[-1] == "finished"
    assert events[-1]["result"]["output"] == "It is on its way."


def test_same_id_and_prompt_is_same_run(here: Here) -> None:
    """The same id and prompt again give the same run."""
    again = [here("run", "support", "x", "--id", "same", "--json").lines[-1] for _ in range(2)]
    assert again[0] == again[1]
    other = here("run", "support", "y", "--id", "same")
    assert other.code == 2
    assert "choose another id, or start it anew with rerun=True (--rerun)" in other.err
    assert here("run", "support", "y", "--id", "same", "--rerun").code == 0


def test_detached_run_is_followed_later(here: Here) -> None:
    """A run is started, left alone, and followed later by the same call."""
    said = here("run", "support", "x", "--id", "alone", "--detach")
    assert (said.code, said.out, said.err) == (0, "alone\n", "")
    assert here("watch", "alone").out == "It is on its way.\n"
    assert here("run", "support", "x", "--id", "alone").out == "It is on its way.\n"


def test_limit_has_own_exit_code(here: Here) -> None:
    """A limit ends a run early, with an exit code of its own."""
    said = here("run", "support", "x", "--limit", "steps=1")
    assert said.code == 4
    assert "■ max_steps · 1 step" in said.err


def test_failed_run_has_own_exit_code(here: Here) -> None:
    """A failed run has an exit code of its own."""
    said = here("run", "broken", "x")
    assert said.code == 1
    assert "✗ failed: bad_request: no such thing" in said.err


def test_unknown_agent_is_told_in_words(shell: Shell, here: Here) -> None:
    """A run, and a chat, of an agent that no worker serves are left with the agents that there are, and wait."""
    words = f"no worker serves 'nobody' on queue '{shell.variables['PERDURE_TASK_QUEUE']}'"
    known = "; these agents are served there: asker, broken,"
    said = here("run", "nobody", "x", "--id", "unknown")
    assert said.code == 3
    assert words + known in said.err
    assert "follow it then: perdure watch unknown" in said.err
    assert "or end it: perdure stop unknown" in said.err
    shown = here("show", "unknown")
    assert (shown.code, words in shown.out) == (0, True)
    assert f"! unknown: {words}{known}" in here("list").out
    assert words in next(run for run in here("list", "--json").json if run["id"] == "unknown")["cannot_begin"]
    chat = shell.perdure("chat", "nobody", "--session", "empty-desk", stdin="Hello?\n")
    assert (chat.code, words + known in chat.err) == (3, True)
    watching = shell.start("watch", "unknown")
    watching.says("cannot begin: no worker serves 'nobody'")
    assert here("stop", "unknown").code == 0
    watching.says("stopped")
    assert here("stop", "empty-desk").code == 0


def test_other_command_approves_followed_run(shell: Shell, here: Here) -> None:
    """Another command approves a call while the run is followed."""
    following = shell.start("run", "payer", "x", "--id", "held")
    following.says("answer with: perdure approve held call-1-1")
    assert "held" in [run["id"] for run in here("list", "--waiting", "--json").json]
    assert "nothing of run" not in here("show", "held").out
    said = shell.perdure("approve", "held", "--by", "bob", "--json")
    assert said.json == {"id": "held", "call_id": "call-1-1", "allow": True, "by": "bob"}
    following.says("✓ refund: paid back 12.5 for 1")
    assert following.process.wait(timeout=60) == 0
    again = here("approve", "held", "call-1-1")
    assert (again.code, again.err[:6]) == (2, "error:")


def test_approval_may_change_arguments(shell: Shell, here: Here) -> None:
    """A person approves a call with other arguments, and denies another call."""
    run = started(shell, "twice")
    until_it_is(shell, run, "waiting_approval")
    unclear = here("approve", run)
    assert unclear.code == 2
    assert 'these wait: call-1-1: refund(order_id="1", amount=1' in unclear.err
    wrong = here("approve", run, "call-1-9")
    assert (wrong.code, "no call 'call-1-9' waits" in wrong.err) == (2, True)
    bad = here("approve", run, "call-1-1", "--arguments", '["much"]')
    assert (bad.code, bad.err[:6], bad.err.count("\n")) == (2, "error:", 1)
    changed = '{"order_id": "1", "amount": 0.5}'
    assert here("approve", run, "call-1-1", "--arguments", changed).code == 0
    assert shell.perdure("deny", run, "--reason", "too much").code == 0
    until_it_is(shell, run, "completed")
    told = shell.perdure("transcript", run).out
    assert "paid back 0.5 for 1" in told
    assert re.search(r"This call was refused by .*: too much", told)


def test_a_question_is_answered_by_send(shell: Shell, here: Here) -> None:
    run = started(shell, "asker")
    until_it_is(shell, run, "waiting_person")
    shown = here("show", run).out
    assert "Which order?" in shown
    assert f'perdure send {run} "..." --call call-1-1' in shown
    unknown = here("send", run, "the blue one", "--call", "call-9-9")
    assert (unknown.code, unknown.err) == (
        2,
        f"error: no question 'call-9-9' waits; these wait: {run}/call-1-1 \"Which order?\"\n",
    )
    answered = shell.perdure("send", run, "the blue one", "--call", "call-1-1", "--json").json
    assert answered == {"id": run, "unread": 0, "call_id": "call-1-1", "run_id": run}
    watched = here("watch", run)
    assert (watched.code, watched.out) == (0, "Thanks.\n")
    late = here("send", run, "more")
    assert (late.code, late.err) == (2, f"error: run {run!r} is over; look at it with `perdure show {run}`\n")


def test_parked_run_resumes_as_told(shell: Shell, here: Here) -> None:
    """A parked run says how to resume it, and that command resumes it."""
    said = shell.perdure("run", "locked", "x", "--id", "parked")
    assert said.code == 3
    assert "! parked: authentication at step 1 (locked:x): the key is wrong" in said.err
    assert "perdure resume parked" in said.err
    assert [run["status"] for run in here("list", "--status", "parked", "--json").json] == ["parked"]
    assert "parked (authentication)" in here("list", "--status", "parked").out
    shell.write("key", "")
    assert shell.perdure("resume", "parked").out == "parked: resumed\n"
    assert here("watch", "parked").out == "mended\n"


def test_redrive_selects_runs_by_cause(shell: Shell, here: Here) -> None:
    """Parked runs are found by their cause and resumed with another model."""
    shell.folder.joinpath("key").unlink(missing_ok=True)
    runs = [started(shell, "locked") for _ in range(2)]
    for run in runs:
        until_it_is(shell, run, "parked")

    def found() -> bool:
        told = here("redrive", "--cause", "auth", "--agent", "locked", "--dry-run", "--json").json
        return {run["id"] for run in told} == set(runs)

    wait_for(found, "both in the list")
    shown = shell.perdure("redrive", "--all", "--dry-run")
    assert shown.err == "2 for authentication\n"
    assert all(run in shown.out for run in runs)
    doctor = {one["name"]: one for one in shell.perdure("doctor", "--json").json}
    assert doctor["parked runs"]["text"].startswith("2 for authentication (oldest ")
    assert doctor["parked runs"]["verdict"] == "warn"
    assert here("redrive", "--cause", "payment").err == "no such run is parked\n"
    wrong = here("redrive", runs[0], "--model", "nobody:x")
    assert (wrong.code, "no such provider here; there are: " in wrong.err) == (2, True)
    done = here("redrive", "--cause", "authentication", "--model", "support:x", "--limit", "steps=9")
    assert sorted(done.out.splitlines()) == sorted(f"{run}: redriven" for run in runs)
    for run in runs:
        assert here("watch", run).code == 0
    again = here("redrive", runs[0])
    assert (again.code, "is over" in again.err) == (2, True)
    assert here("redrive", "--all").err == "no such run is parked\n"


def test_commands_take_several_runs(shell: Shell, here: Here) -> None:
    """Several runs are paused, resumed, stopped and cancelled by a command each."""
    one, two = started(shell, "slow"), started(shell, "slow")
    assert shell.perdure("pause", one, two, "--json").lines == [
        {"id": one, "done": "paused"},
        {"id": two, "done": "paused"},
    ]
    until_it_is(shell, one, "paused")
    mixed = here("resume", one, "nosuchrun", two)
    assert mixed.code == 2
    assert mixed.out == f"{one}: resumed\n{two}: resumed\n"
    assert mixed.err == "error: there is no run 'nosuchrun' in namespace 'default'\n"
    assert here("stop", one).code == 0
    assert here("cancel", two).code == 0
    assert (here("watch", one).code, here("watch", two).code) == (4, 4)
    over = here("pause", one)
    assert (over.code, "is over" in over.err) == (2, True)


def test_terminal_asks_for_approval(shell: Shell) -> None:
    """A person at a terminal is asked for an approval."""
    with shell.terminal("run", "payer", "x", "--id", "asked") as terminal:
        terminal.says("approve call-1-1? [y]es, [n]o and why, [d]etach:")
        terminal.types("what?\n")
        terminal.says("approve call-1-1?")
        terminal.types("y\n")
        terminal.says("paid back 12.5 for 1")
        assert terminal.ends() == 0
    assert "Done." in terminal.said
    assert "✓" in terminal.said
    assert "Traceback" not in terminal.said


def test_ctrl_c_at_question_keeps_run(shell: Shell, here: Here) -> None:
    """Ctrl-C at a question does not change the run."""
    with shell.terminal("run", "asker", "x", "--id", "interrupted") as terminal:
        terminal.says("your answer (empty: detach):")
        terminal.types("\x03")
        assert terminal.ends() == 130
    assert "perdure watch interrupted" in terminal.said
    assert here("stop", "interrupted").code == 0


def test_ctrl_c_keeps_run(shell: Shell, here: Here) -> None:
    """Ctrl-C does not change the run."""
    following = shell.start("run", "slow", "x", "--id", "left")
    following.says("→ gate")
    assert following.interrupt() == 130
    assert "follow it again: perdure watch left" in following.said
    assert "Traceback" not in following.said
    until_it_is(shell, "left", "acting")
    assert here("stop", "left").code == 0


def test_runs_are_listed_and_shown(shell: Shell, here: Here) -> None:
    assert here("run", "support", "x", "--id", "seen", "--user", "eve").code == 0

    def listed() -> list[str]:
        return [run["id"] for run in here("list", "--user", "eve", "--json").json]

    wait_for(lambda: listed() == ["seen"], "the list to have it")
    table = here("list", "--agent", "support", "--query", 'AgentUser = "eve"', "--most", "1").out
    assert table.splitlines()[0].split() == [
        "ID",
        "AGENT",
        "STATUS",
        "STOP",
        "STEPS",
        "COST",
        "USER",
        "STARTED",
    ]
    assert table.splitlines()[1].split()[:4] == ["seen", "support", "completed", "end_turn"]
    looked = here("show", "seen", "--json").json
    assert (looked["state"], len(looked["steps"])) == ("completed", 2)
    shown = shell.perdure("show", "seen").out
    assert '✓ order_status(order_id="1")' in shown
    assert "cost unknown" in shown
    told = here("transcript", "seen", "--json").json
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "assistant"]
    assert here("list", "--user", "nobody-at-all").err == "no such run\n"


def test_agents_come_from_file_and_runs(here: Here) -> None:
    """Agents are listed from a file and from runs."""
    of_file = here("agents", "desk.py", "--json").json
    assert [agent["name"] for agent in of_file][:2] == ["support", "payer"]
    assert "support" in here("agents", "desk.py").out
    assert here("run", "support", "x").code == 0
    of_runs = wait_for(lambda: here("agents", "--json").json, "a run to be listed")
    assert {"name", "runs"} == set(of_runs[0])
    assert "from the latest" in here("agents").err


def test_doctor_passes_without_secrets(shell: Shell) -> None:
    """The doctor finds no fault, and prints no secret."""
    keyed = Shell(shell.folder, {**shell.variables, "ANTHROPIC_API_KEY": "sk-ant-very-secret"})
    said = keyed.perdure("doctor", "--json")
    verdicts = {finding["name"]: finding["verdict"] for finding in said.json}
    assert said.code == 0, said.out
    assert set(verdicts.values()) == {"ok"}, said.out
    assert "very-secret" not in said.out
    assert set(verdicts) == {
        *("versions", "embedded server", "provider keys", "blob store", "server"),
        *("namespace", "search attributes", "worker", "parked runs", "circuits", "clock"),
        *("blob lifetime", "threads", "agents"),
    }


def test_doctor_fails_where_something_is_wrong(shell: Shell) -> None:
    said = shell.perdure("doctor", "--address", f"127.0.0.1:{free_port()}")
    assert said.code == 1
    assert re.search(r"^fail +server +no Temporal server answers", said.out, re.MULTILINE)
    there = shell.perdure("doctor", "--namespace", "nosuch", "--task-queue", "nobody-polls", "--json")
    verdicts = {finding["name"]: finding["verdict"] for finding in there.json}
    assert (there.code, verdicts["namespace"], verdicts["worker"]) == (1, "fail", "warn")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "support", " "], 2, "is empty: say what the agent is to do"),
        (["run", "support"], 2, "give the agent one task: "),
        (["run", "support", "x", "--limit", "steps=x"], 2, "--limit: steps: Input should be a valid integer"),
        (["run", "support", "x", "--context", "x"], 2, "--context 'x': write name=value"),
        (["run", "support", "x", "--address", "nowhere"], 2, "write it as host:port, such as localhost:7233"),
        (["run", "support", "x", "--address", "127.0.0.1:1"], 5, "no Temporal server answers at 127.0.0.1:1"),
        (["run", "support", "x", "--task-queue", "nobody-polls"], 5, "perdure worker FILE"),
        (["run", "support", "x", "--namespace", "nosuch"], 2, "Namespace nosuch is not found"),
        (
            ["list", "--status", "asleep"],
            2,
            "--status 'asleep': no such status; choose one of",
        ),
        (["list", "--query", "AgentStatus ="], 2, "Temporal refused:"),
        (["show", "nosuchrun"], 2, "there is no run 'nosuchrun' in namespace 'default'"),
        (["watch", "nosuchrun"], 2, "there is no run 'nosuchrun' in namespace 'default'"),
        (["redrive"], 2, "name the runs one way: by their ids"),
        (["redrive", "x", "--all"], 2, "name the runs one way: by their ids"),
        (["redrive", "--cause", "sunshine"], 2, "no cause 'sunshine'; the causes are rate_limited,"),
        (["redrive", "nosuchrun"], 2, "there is no run 'nosuchrun'"),
        (["extend", "x"], 2, "say what is granted: --limit steps=100"),
        (["extend", "x", "--limit", "dollars=9"], 2, "no limit 'dollars'; the limits are steps,"),
        (["extend", "nosuchrun", "--limit", "steps=9"], 2, "there is no run 'nosuchrun'"),
        (["upgrade", "nosuchrun"], 2, "there is no run 'nosuchrun'"),
        (["dev", "desk.py", "--address", "x:1"], 2, "perdure worker FILE --address"),
    ],
)
def test_error_is_one_line_with_advice(
    shell: Shell, here: Here, words: list[str], code: int, said: str
) -> None:
    """A wrong call ends with a line that says what to do."""
    done = here(*words)
    assert done.code == code
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert said in done.err


@pytest.mark.parametrize("words", [["nosuchcommand"], ["run", "--nosuchoption"], ["show"]])
def test_wrong_command_line_shows_usage(here: Here, words: list[str]) -> None:
    """A wrong command line ends with the usage."""
    done = here(*words)
    assert done.code == 2
    assert "Usage: " in done.err


WRONG = {
    "import": (
        "import nosuch\n",
        "wrong.py:1: does not import: ModuleNotFoundError: No module named 'nosuch'",
    ),
    "provider": (
        "from perdure import Agent\na = Agent(name='a', model='nosuch:x')\n",
        "agent 'a': no provider 'nosuch' for model 'nosuch:x'; there are: ",
    ),
    "option": (
        """
from perdure import Agent, ModelConfig
a = Agent(name="a", model=ModelConfig(name="anthropic:x", options={"nosuch": 1}))
""",
        "agent 'a': ",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_worker_rejects_wrong_file(shell: Shell, wrong: str) -> None:
    """A worker rejects a wrong file with a single line."""
    text, told = WRONG[wrong]
    file = shell.write("wrong.py", text)
    said = shell.perdure("worker", file)
    assert said.code == 2
    assert said.err.startswith(f"error: {told}")
    assert said.err.count("\n") == 1


def test_detached_run_waits_for_worker(here: Here) -> None:
    """A run without a worker waits for one if it may."""
    said = here("run", "support", "x", "--task-queue", "nobody-polls", "--id", "waits", "--detach")
    assert (said.code, said.out, "start one: perdure worker FILE" in said.err) == (0, "waits\n", True)
    assert here("cancel", "waits").code == 0


def test_deployment_without_build_is_rejected(shell: Shell) -> None:
    said = shell.perdure("worker", "desk.py", "--deployment", "d")
    assert (said.code, "a worker deployment needs a build id too: --build" in said.err) == (2, True)


def ended_by(shell: Shell, background: Background) -> str:
    """What a worker said until a signal ended it well."""
    assert background.interrupt() == 0, background.said
    return background.said


def test_worker_serves_without_api_key(shell: Shell) -> None:
    """A worker warns of a missing API key and serves nevertheless."""
    file = shell.write(
        "keyless.py",
        "from perdure import Agent\na = Agent(name='keyless', model='anthropic:claude-sonnet-5-5')\n",
    )
    port = free_port()
    worker = shell.start("worker", file, "--task-queue", "keyless", "--health", f"127.0.0.1:{port}")
    worker.says("ready: keyless on task queue 'keyless'")
    assert "warning: agent 'keyless', model anthropic:claude-sonnet-5-5: no key" in worker.said
    assert "ANTHROPIC_API_KEY" in worker.said
    healthy = shell.perdure(f"http://127.0.0.1:{port}/ready", module="perdure.workers.observe.health")
    assert healthy.code == 0
    parked = shell.perdure("run", "keyless", "x", "--task-queue", "keyless")
    assert (parked.code, "ANTHROPIC_API_KEY" in parked.err) == (3, True)
    assert "stopping: pending calls may finish" in ended_by(shell, worker)


def test_second_signal_ends_worker_at_once(shell: Shell, tmp_path: Path) -> None:
    file = shell.write("desk2.py", AGENTS.replace('"open"', f'"{tmp_path / "never"}"', 1))
    worker = shell.start("worker", file, "--task-queue", "twice")
    worker.says("ready: ")
    run = started(shell, "slow", "twice")
    until_it_is(shell, run, "acting")
    worker.process.terminate()
    worker.says("a second signal exits at once")
    assert worker.interrupt() == 130
    assert "exiting at once" in worker.said


def test_workers_that_differ_are_told(shell: Shell) -> None:
    """The doctor, and the worker that comes later, say which agents which worker of the queue serves."""
    one = "from perdure import Agent\n{0} = Agent(name='{0}', model='scripted:x')\n"
    one += "from perdure.testing import ScriptedModel\nmodels = {{'scripted': ScriptedModel([])}}\n"
    first = shell.start("worker", shell.write("sales.py", one.format("seller")), "--task-queue", "both")
    first.says("ready: seller")

    def agents() -> dict[str, str]:
        findings = shell.perdure("doctor", "--task-queue", "both", "--json").json
        found: dict[str, str] = next(finding for finding in findings if finding["name"] == "agents")
        return found

    wait_for(lambda: "serve: seller" in agents()["text"], "the worker to tell what it serves")
    second = shell.start("worker", shell.write("stores.py", one.format("packer")), "--task-queue", "both")
    second.says("serve different agents (this worker: packer; ")
    wait_for(lambda: agents()["verdict"] == "warn", "the doctor to warn")
    assert ": seller" in agents()["text"]
    assert ": packer" in agents()["text"]
    unknown = shell.perdure("chat", "buyer", "--task-queue", "both")
    assert unknown.code == 2
    assert (
        "no worker serves 'buyer' on queue 'both'; these agents are served there: packer, seller"
        in unknown.err
    )
    assert second.interrupt() == 0
    wait_for(lambda: agents()["verdict"] == "ok", "a worker that has ended to be left out")
    assert first.interrupt() == 0
