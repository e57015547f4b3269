"""Loading: from a file or module that a person wrote to the agents, swarms and graphs in it.

    python -m perdure.workers.load FILE... [--json]      # what is in them, as `perdure agents` shows it
    python -m perdure.workers.load FILE... --spec NAME   # one of them as data, for `perdure graph`

Whatever is wrong with the file is told in one line that names the line of it, because the person
who reads it is the one who wrote the file.
"""

import argparse
import importlib
import importlib.util
import json
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from perdure.agent import Agent
from perdure.errors import DefinitionError, PerdureError
from perdure.graph import Graph
from perdure.members import Member, resolve_member
from perdure.model import Model
from perdure.swarm import Swarm
from perdure.wire.spec import ResolvedAgent

from .plugin import members_by_name

_KINDS: Final = (Agent, Swarm, Graph)
_EXAMPLE: Final = 'support = Agent(name="support", model="anthropic:claude-sonnet-5-5")'


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """What agent files hold: agents, swarms and graphs in the order they were written, and providers."""

    agents: tuple[Member, ...] = ()
    models: Mapping[str, Model] = field(default_factory=dict[str, Model])


def load_file(target: str) -> Definitions:
    """Import an agent file and collect what it defines at its top level.

    `target` is `path/to/file.py` or `package.module`, with `:name` behind it to take only what is
    bound to that name. The file's folder goes on `sys.path`, so that its neighbours import.

    Raises:
        DefinitionError: no such file, it does not import, or there is no agent in it.

    """
    place, _, name = target.partition(":")
    if not place:
        raise DefinitionError(f"{target!r} names no file; write path/to/file.py or package.module")
    module = _import(place)
    found = vars(module) if not name else {name: _named(module, place, name)}
    agents = tuple(_without_repetition(_agents_in(found.values())))
    if not agents:
        what = f"{target} is" if name else f"{place} defines"
        raise DefinitionError(
            f"{what} no Agent, Swarm or Graph; write one at its top level, such as {_EXAMPLE}"
        )
    members_by_name(agents)
    return Definitions(agents=agents, models=_models_of(module, place))


def load_files(targets: Sequence[str]) -> Definitions:
    """Several files as one; a later file's provider wins over an earlier one's of the same name.

    Raises:
        DefinitionError: as `load_file`, or two agents of one name.

    """
    loaded = [load_file(target) for target in targets]
    agents = tuple(_without_repetition(agent for part in loaded for agent in part.agents))
    members_by_name(agents)
    models = {name: model for part in loaded for name, model in part.models.items()}
    return Definitions(agents=agents, models=models)


def folder_of(target: str) -> Path:
    """The folder to watch for changes: the file's, or for a module the working directory."""
    place = target.partition(":")[0]
    return Path(place).resolve().parent if _is_path(place) else Path.cwd()


# -- importing


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


def _import(place: str) -> ModuleType:
    if _is_path(place):
        return _guarded(place, lambda: _import_file(place))
    _importable(Path.cwd())
    return _guarded(place, lambda: importlib.import_module(place))


def _import_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        hint = "it is a folder" if path.is_dir() else "there is no such file"
        raise DefinitionError(f"{place}: {hint}; give the Python file that defines the agent")
    _importable(path.parent)
    name = _module_name(path)
    known = sys.modules.get(name)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{place} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _module_name(path: Path) -> str:
    """The file's own name, so that its neighbours import this very module; another where that is taken."""
    taken = sys.modules.get(path.stem)
    origin = getattr(taken, "__file__", None)
    if (taken is None and path.stem not in sys.stdlib_module_names) or (
        origin is not None and Path(origin).resolve() == path
    ):
        return path.stem
    return f"perdure_agents_{path.parent.name}_{path.stem}"


def _guarded(place: str, bring: Callable[[], ModuleType]) -> ModuleType:
    try:
        return bring()
    except DefinitionError as error:
        where = _own_frame(error)
        raise DefinitionError(f"{where}: {error}" if where else str(error)) from error
    except SyntaxError as error:
        where = f"{_shown(error.filename or place)}:{error.lineno or 1}"
        raise DefinitionError(f"{where}: {type(error).__name__}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        where = _own_frame(error) or place
        raise DefinitionError(f"{where}: does not import: {type(error).__name__}: {said}") from error


def _own_frame(error: BaseException) -> str | None:
    """`file:line` of the deepest frame that is the user's: not ours, not a library's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{_shown(frames[-1].filename)}:{frames[-1].lineno}" if frames else None


def _is_own(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    return not any(path.is_relative_to(folder) for folder in _foreign_folders())


def _foreign_folders() -> list[Path]:
    rooms = Path(__file__).resolve().parent.parent  # of the package, or of the checkout
    names = ("perdure", "workflows", "activities", "workers", "starter")
    paths = sysconfig.get_paths()
    libraries = [paths["stdlib"], paths["purelib"], paths["platlib"], site.getusersitepackages()]
    return [*(rooms / name for name in names), *(Path(library).resolve() for library in libraries)]


def _shown(filename: str) -> str:
    path = Path(filename).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# -- what a module holds


def _named(module: ModuleType, place: str, name: str) -> Any:
    if not hasattr(module, name):
        raise DefinitionError(f"{place} has no {name!r}")
    return getattr(module, name)


def _agents_in(values: Any) -> Iterator[Member]:
    for value in values:
        if isinstance(value, _KINDS):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in cast("Sequence[Any]", value) if isinstance(item, _KINDS))


def _without_repetition(agents: Iterator[Member]) -> Iterator[Member]:
    seen: set[int] = set()
    for agent in agents:
        if id(agent) not in seen:
            seen.add(id(agent))
            yield agent


def _models_of(module: ModuleType, place: str) -> dict[str, Model]:
    given = getattr(module, "models", None)
    if not isinstance(given, Mapping):
        return {}
    named: Mapping[Any, Any] = given  # pyright: ignore[reportUnknownVariableType]
    if not any(isinstance(value, Model) for value in named.values()):
        return {}  # the user's own variable, about something else
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, Model):
            raise DefinitionError(
                f"{place}: models[{name!r}] is no Model; write a provider's name and an object with "
                "`stream` and `check`"
            )
    return dict(named)


# -- as a command


def describe(member: Member) -> dict[str, Any]:
    """An agent, swarm or graph in a few plain words, for a table."""
    spec = member.spec()
    plain: dict[str, Any] = {
        "name": member.name,
        "kind": spec.kind,
        "members": list(member.members),
        "spec_hash": spec.hash,
        "model": "",
        "fallbacks": [],
        "tools": [],
    }
    if isinstance(member, Agent):
        plain |= {
            "model": member.models[0].name,
            "fallbacks": [config.name for config in member.models[1:]],
            "tools": [tool.name for tool in member.tools],
        }
    return plain


def spec_named(members: Sequence[Member], name: str) -> ResolvedAgent:
    """The one of that name, among those that are served with them, as data.

    Raises:
        DefinitionError: there is none.

    """
    served = members_by_name(members)
    if name not in served:
        raise DefinitionError(f"nothing is called {name!r} here; there are: {', '.join(served)}")
    return resolve_member(served[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell what is in the files; 0, or 2 when they cannot be loaded."""
    parser = argparse.ArgumentParser("python -m perdure.workers.load", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--spec", metavar="NAME", help="print that one as data")
    given = parser.parse_args(arguments)
    try:
        members = load_files(given.files).agents
        if given.spec is not None:
            said = spec_named(members, given.spec).model_dump_json()
        elif given.json:
            said = json.dumps([describe(member) for member in members])
        else:
            said = "\n".join(
                f"{one['name']}\t{one['model'] or one['kind']}" for one in map(describe, members)
            )
    except PerdureError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
