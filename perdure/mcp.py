"""MCP servers as tools: what an agent's file says of a server. Nothing here imports the package `mcp`.

Theory of operation. A server lists its tools when a run resolves, on the worker. The run pins them with their
descriptions and schemas, and with a digest of each. A later call is refused if the server then describes the tool
otherwise. Address, headers and environment stay in the worker: no spec and no history holds them.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, Final, Literal, get_args

from perdure.definitions import Definition
from perdure.errors import DefinitionError
from perdure.fallbacks import ToolFallback
from perdure.retries import ToolRetry
from perdure.wire.spec import Effect

_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,31}")
"""Names of servers: half of the length that providers allow, so that the tool's own name has room."""
_PREFIX: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9_-]{0,31})?")
ALL: Final = "*"
"""Entry of `McpServer.tools` that stands for all tools that no other entry names."""

HeaderValue = str | Callable[[], str | None]
"""Value of a header, or a function that gives the value of the moment."""


@dataclass(frozen=True, kw_only=True)
class McpToolInfo:
    """Description of a tool by its server, for functions that decide about its effect and approval.

    The hints are the server's claims. A server may be wrong, or lie: they fit a decision to ask more often, and a
    decision to ask less only for a server that you trust.
    """

    name: str
    description: str
    read_only: bool = False
    """The server says that the tool changes nothing."""
    destructive: bool = True
    """The server does not say that the tool only adds."""
    idempotent: bool = False
    """The server says that a repeated call with the same arguments has no further effect."""
    open_world: bool = True
    """The server does not say that the tool stays within a closed domain."""


@dataclass(frozen=True)
class McpTool(Definition):
    """Settings of one tool of a server, in `McpServer.tools`; None: as the server has it."""

    name: str
    """Name of the tool on the server."""
    _: KW_ONLY
    effect: Effect | None = None
    approval: bool | None = None
    resource: str | None = None
    """Name of the parameter whose value policies match as the resource."""
    timeout: timedelta | None = None
    retry: ToolRetry | None = None
    concurrency: int | None = None
    fallback: ToolFallback | None = None
    """Stand-in that answers once the attempts are used up; None: the model gets the error."""
    circuit: bool | None = None
    polls: bool = False
    """True: `Limits.identical_calls` does not count its calls."""


@dataclass(frozen=True, kw_only=True)
class McpServer(Definition):
    """MCP server whose tools an agent has. Needs `pip install "perdure[mcp]"` on the worker.

    Give `url` for streamable HTTP, or `command` for a process that speaks over stdin and stdout. In `url`, `command`,
    `headers` and `env`, `${NAME}` stands for a variable of the worker's environment or of `.env`.
    """

    name: str
    url: str | None = None
    command: str | Sequence[str] | None = field(default=None, repr=False)
    """Command with its arguments; a text is split as a shell splits it, and no shell runs it."""
    headers: Mapping[str, HeaderValue] = field(default_factory=dict[str, HeaderValue], repr=False)
    """Headers of each request. Values are read anew for each one."""
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Variables of the process. It gets these and HOME, LOGNAME, PATH, SHELL, TERM and USER, and nothing else of the
    worker's environment."""
    cwd: str | None = None
    tools: Literal["all"] | Sequence[str | McpTool] = "all"
    """Tools of the server that the agent has. In a list, "*" stands for all that no other entry names."""
    effect: Effect | Callable[[McpToolInfo], Effect] = "write"
    """Effect of its tools. A write that may have happened is not tried again; see `repeatable`."""
    approval: bool | Callable[[McpToolInfo], bool] = False
    """True: each call waits until a person allows or denies it. A function decides for each tool, at resolving."""
    prefix: str | None = None
    """Beginning of the names by which the model calls its tools; None: the server's name and an underscore."""
    timeout: timedelta = timedelta(minutes=1)
    """Longest time of one call, from the moment at which it is sent."""
    heartbeat: timedelta = timedelta(seconds=10)
    """Time without a heartbeat after which the worker counts as dead."""
    retry: ToolRetry = field(default_factory=ToolRetry)
    concurrency: int | None = None
    """Most calls of each of its tools at the same time in a run."""
    circuit: bool = False
    repeatable: bool = False
    """True: a write that may have happened is tried again. The server finds the call's idempotency key in the
    request's `_meta`, as "dev.perdure/idempotency-key"."""
    connections: int = 1
    """Most connections, or processes, that a worker has to the server. Calls share them."""
    recheck: timedelta = timedelta()
    """Greatest age of the list of tools by which a call is checked. Zero: each call asks for the list first."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DefinitionError(
                f"MCP server name {self.name!r}: use letters, digits, '_' and '-', at most 32, starting with a letter"
            )
        self._check_transport()
        self._check_values()
        self._check_tools()

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Command and arguments; empty for a server with an address."""
        if self.command is None:
            return ()
        return tuple(shlex.split(self.command) if isinstance(self.command, str) else self.command)

    @cached_property
    def settings(self) -> dict[str, McpTool]:
        """Entries of `tools` that name a tool, by that name."""
        entries = () if self.tools == "all" else self.tools
        named = (McpTool(entry) if isinstance(entry, str) else entry for entry in entries)
        return {entry.name: entry for entry in named if entry.name != ALL}

    @property
    def offers_all(self) -> bool:
        """True when the agent has all tools of the server."""
        return self.tools == "all" or ALL in self.tools

    @property
    def tool_prefix(self) -> str:
        """Beginning of the names of its tools."""
        return f"{self.name}_" if self.prefix is None else self.prefix

    @property
    def place(self) -> tuple[Any, ...]:
        """All that decides which server it is: servers of the same place share their connections."""
        variables = tuple(sorted(self.env.items()))
        # Functions have no order, so names alone are sorted.
        headers = tuple((name, self.headers[name]) for name in sorted(self.headers))
        return self.name, self.url, self.words, headers, variables, self.cwd, self.connections

    def _check_transport(self) -> None:
        if (self.url is None) == (self.command is None):
            raise self._wrong('give either url="https://..." or command="..."')
        if self.url is not None and not re.match(r"(https?://|\$\{)", self.url):
            raise self._wrong(f"url must begin with http:// or https://, not {self.url!r}")
        if self.url is not None and re.match(r"https?://[^/?#]*@", self.url):
            raise self._wrong("url holds a password; give it in headers, as ${NAME}")
        if self.command is not None:
            self._check_command()
        elif self.env or self.cwd is not None:
            raise self._wrong("env and cwd are for a command; a server with a url takes headers")

    def _check_command(self) -> None:
        if self.headers:
            raise self._wrong("headers are for a url; a command takes env")
        try:
            words = self.words
        except ValueError as error:  # an open quote
            raise self._wrong(f"command cannot be split: {error}") from None
        if not words or not all(isinstance(word, str) and "\0" not in word for word in words):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._wrong("command must be a text, or a list of texts, that names a program")

    def _check_values(self) -> None:
        for what, span in (("timeout", self.timeout), ("heartbeat", self.heartbeat)):
            if span <= timedelta():
                raise self._wrong(f"{what} must be positive, not {span!r}")
        if self.recheck < timedelta():
            raise self._wrong(f"recheck must not be negative, not {self.recheck!r}")
        counts = {"connections": self.connections, "concurrency": self.concurrency}
        for what, count in counts.items():
            if count is not None and count < 1:
                raise self._wrong(f"{what} must be 1 or more, not {count!r}")
        if not callable(self.effect) and self.effect not in get_args(Effect):
            raise self._wrong(f"effect is {self.effect!r}; use read, write or a function")
        if not _PREFIX.fullmatch(self.tool_prefix):
            raise self._wrong(f"prefix {self.tool_prefix!r}: use letters, digits, '_' and '-', at most 32")

    def _check_tools(self) -> None:
        if self.tools != "all" and isinstance(self.tools, str):
            raise self._wrong(f'tools must be "all" or a list of names, not {self.tools!r}')
        entries: tuple[Any, ...] = () if self.tools == "all" else tuple(self.tools)
        if self.tools != "all" and not entries:
            raise self._wrong('tools is empty: name some, or write "all"')
        names: list[str] = []
        for entry in entries:
            if not isinstance(entry, str | McpTool):
                raise self._wrong(f"{entry!r} in tools is neither a name nor an McpTool")
            names.append(entry if isinstance(entry, str) else entry.name)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self._wrong(f"tools names {twice!r} twice")
        for entry in self.settings.values():
            self._check_entry(entry)

    def _check_entry(self, entry: McpTool) -> None:
        where = f"tool {entry.name!r}: "
        if entry.timeout is not None and entry.timeout <= timedelta():
            raise self._wrong(f"{where}timeout must be positive, not {entry.timeout!r}")
        if entry.concurrency is not None and entry.concurrency < 1:
            raise self._wrong(f"{where}concurrency must be 1 or more, not {entry.concurrency!r}")
        if entry.effect is not None and entry.effect not in get_args(Effect):
            raise self._wrong(f"{where}effect is {entry.effect!r}; use read or write")

    def _wrong(self, why: str) -> DefinitionError:
        return DefinitionError(f"MCP server {self.name!r}: {why}")


def may_be_tool_of(tools: Iterable[Any], name: str) -> bool:
    """Check whether one of the tools has the name, or an MCP server among them may offer it.

    The names of a server's tools are known once a run resolves; the exact check is made there.
    """
    return any(
        name.startswith(tool.tool_prefix) if isinstance(tool, McpServer) else tool.name == name
        for tool in tools
    )
