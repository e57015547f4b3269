"""`perdure dev`: server and worker in one, through changes and crashes."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.workers.dev.server import DevServer, free_port
from tests.waiting import wait_for

from .shell import AGENTS, Background, Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a project of its own, clear of all servers."""
    (tmp_path / "project").mkdir()
    made = Shell(tmp_path / "project")
    made.write("desk.py", AGENTS)
    yield made
    made.close()


@pytest.fixture
def port() -> int:
    return free_port()


def developing(shell: Shell, port: int, *options: str) -> Background:
    begun = shell.start("dev", "desk.py", "--port", str(port), *options)
    begun.says("Ctrl-C ends.")
    return begun


def children(parent: int) -> dict[int, str]:
    """Its child processes, by id, with their command lines."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except (OSError, IndexError):
            continue  # gone meanwhile
    return found


def worker_of(dev: Background) -> int:
    (pid,) = [pid for pid, line in children(dev.process.pid).items() if "-m perdure.workers " in line]
    return pid


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_dev_prints_addresses_and_stops_all(shell: Shell, port: int) -> None:
    ui = free_port()
    dev = developing(shell, port, "--ui-port", str(ui))
    assert f"server   127.0.0.1:{port}" in dev.said
    assert f"UI       http://127.0.0.1:{ui}" in dev.said
    assert "agents   support, payer" in dev.said
    command = f'perdure run support "..." --address 127.0.0.1:{port}'
    assert command in dev.said
    words = command.removeprefix("perdure ").replace('"..."', "Where?").split()
    assert shell.perdure(*words).out == "It is on its way.\n"
    below = children(dev.process.pid)
    assert len(below) == 2
    assert dev.interrupt() == 0
    assert dev.said.endswith("stopped; the runs are kept, and `perdure dev` goes on with them\n")
    assert (is_free(port), is_free(ui)) == (True, True)
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)


def test_dev_follows_changes_and_mistakes(shell: Shell, port: int) -> None:
    dev = developing(shell, port, "--headless")
    address = ["--address", f"127.0.0.1:{port}"]
    shell.write("desk.py", AGENTS.replace("It is on its way.", "It has arrived."))
    dev.says("serving  support")
    assert shell.perdure("run", "support", "Where?", *address).out == "It has arrived.\n"
    shell.write("desk.py", "import nosuch\n")
    dev.says("error: desk.py:1: does not import: ModuleNotFoundError: No module named 'nosuch'")
    dev.says("waiting for a change of the file")
    assert "Traceback" not in dev.said
    shell.write("desk.py", AGENTS.replace("It is on its way.", "It is here."))
    dev.says("serving  support", times=2)
    assert shell.perdure("run", "support", "Where?", *address).out == "It is here.\n"


def test_run_survives_worker_kill_under_dev(shell: Shell, port: int) -> None:
    dev = developing(shell, port, "--headless")
    address = ["--address", f"127.0.0.1:{port}"]
    following = shell.start("run", "slow", "go", *address)
    following.says("→ gate")
    os.kill(worker_of(dev), signal.SIGKILL)
    dev.says("the worker was killed by SIGKILL; starting it again in 0.25 s")
    dev.says("serving  support")
    shell.write("open", "")
    assert following.process.wait(timeout=60) == 0
    assert following.said.count("Opened.") >= 1


def test_runs_outlive_dev(shell: Shell, port: int) -> None:
    address = ["--address", f"127.0.0.1:{port}"]
    first = developing(shell, port, "--headless")
    shell.perdure("run", "payer", "go", "--id", "kept", "--detach", *address)

    shell.until_it_is("kept", address[1], "waiting_approval")
    assert first.interrupt(signal.SIGTERM) == 0
    developing(shell, port, "--headless")
    assert shell.perdure("approve", "kept", *address).code == 0
    assert shell.perdure("watch", "kept", *address).out == "Done.\n"


def test_killed_dev_ends_its_children(shell: Shell, port: int) -> None:
    dev = developing(shell, port, "--headless")
    below = children(dev.process.pid)
    dev.process.kill()
    dev.process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "the children to be gone")
    assert is_free(port)


def test_dead_server_ends_dev(shell: Shell, port: int) -> None:
    dev = developing(shell, port, "--headless")
    (server,) = [pid for pid, line in children(dev.process.pid).items() if "start-dev" in line]
    os.kill(server, signal.SIGKILL)
    dev.says("error: the server ended by itself")
    assert dev.process.wait(timeout=60) == 5


def test_busy_port_is_explained(shell: Shell, server: DevServer) -> None:
    port = server.address.rpartition(":")[2]
    taken = shell.perdure("dev", "desk.py", "--port", port, "--headless")
    assert taken.code == 2
    assert f"`perdure worker desk.py --address 127.0.0.1:{port}`, or start another with --port" in taken.err
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = other.getsockname()[1]
        told = shell.perdure("dev", "desk.py", "--port", str(busy), "--headless")
        assert (told.code, told.err.count("\n")) == (2, 1)
        assert f"port {busy} is busy; another program listens there" in told.err
        told = shell.perdure("dev", "desk.py", "--port", str(free_port()), "--ui-port", str(busy))
        assert f"port {busy} for the web UI is busy" in told.err


def test_wrong_file_is_reported_at_once(shell: Shell, port: int) -> None:
    shell.write("desk.py", "x = (\n")
    dev = shell.start("dev", "desk.py", "--port", str(port), "--headless")
    dev.says("error: desk.py:1: SyntaxError: '(' was never closed")
    shell.write("desk.py", AGENTS)
    dev.says("agents   support")
