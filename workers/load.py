"""Loader of agent files: imports a file or module, and collects its agents, teams and providers.

    python -m perdure.workers.load FILE... [--json]      # lists the definitions, for `perdure agents`
    python -m perdure.workers.load FILE... --spec NAME   # prints a spec as JSON, for `perdure graph`

An error is one line of text that names the line of the file. Its readers wrote the file, and need neither a
traceback nor our frames.
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
from typing import Any, Final, TypeVar, cast

from perdure.agent import Agent
from perdure.errors import DefinitionError, PerdureError
from perdure.graph import Graph
from perdure.members import Member, resolve_member
from perdure.model import Model
from perdure.pattern import Pattern
from perdure.resources import Lifespan, LifespansByMember
from perdure.swarm import Swarm
from perdure.user_credentials import CredentialsByMember, CredentialsProvider
from perdure.wire.spec import ResolvedAgent

from .plugin import members_by_name

_Part = TypeVar("_Part", Lifespan[Any], CredentialsProvider)
_KINDS: Final = (Agent, Swarm, Graph, Pattern)
_EXAMPLE: Final = 'support = Agent(name="support", model="anthropic:claude-sonnet-5-5")'


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """Definitions in agent files: agents, swarms, graphs and patterns in the order of the files, and providers."""

    agents: tuple[Member, ...] = ()
    models: Mapping[str, Model] = field(default_factory=dict[str, Model])
    credentials: CredentialsByMember = field(default_factory=lambda: CredentialsByMember({}))
    resources: LifespansByMember = field(default_factory=lambda: LifespansByMember({}))


def load_file(target: str) -> Definitions:
    """Import an agent file and collect what it defines at its top level.

    `target` is `path/to/file.py` or `package.module`; with `:name` after it, only the value of that name
    is collected. The file's folder is put on `sys.path`, so that it can import its neighbours.

    Raises:
        DefinitionError: there is no such file, it does not import, or it defines no agent.

    """
    place, _, name = target.partition(":")
    if not place:
        raise DefinitionError(f"{target!r} names no file; write path/to/file.py or package.module")
    module = _import(place)
    values = vars(module) if not name else {name: _value_of(module, place, name)}
    agents = tuple(_distinct(_agents_in(values.values())))
    if not agents:
        subject = f"{target} is" if name else f"{place} defines"
        raise DefinitionError(
            f"{subject} no Agent, Swarm, Graph or Pattern; write one at its top level, such as {_EXAMPLE}"
        )
    members = members_by_name(agents)  # raises for two of the same name
    lifespan = _only(Lifespan, module, place, "lifespans", "a worker enters one for each file")
    lifespans = {} if lifespan is None else dict.fromkeys(members, lifespan)
    provider = _only(CredentialsProvider, module, place, "functions of credentials", "each file has one")
    providers = {} if provider is None else dict.fromkeys(members, provider)
    return Definitions(
        agents=agents,
        models=_models_of(module, place),
        credentials=CredentialsByMember(providers),
        resources=LifespansByMember(lifespans),
    )


def load_files(targets: Sequence[str]) -> Definitions:
    """Load several files; of providers with the same name, the last file's is used.

    Raises:
        DefinitionError: as `load_file`, or two agents have the same name.

    """
    files = [load_file(target) for target in targets]
    agents = tuple(_distinct(agent for file in files for agent in file.agents))
    members_by_name(agents)
    models = {name: model for file in files for name, model in file.models.items()}
    return Definitions(
        agents=agents,
        models=models,
        credentials=CredentialsByMember(
            _merge("credentials", [file.credentials.providers for file in files])
        ),
        resources=LifespansByMember(_merge("a lifespan", [file.resources.lifespans for file in files])),
    )


def _merge(what: str, files: Sequence[Mapping[str, _Part]]) -> dict[str, _Part]:
    """Return what the files give to each member."""
    merged: dict[str, _Part] = {}
    for file in files:
        for name, part in file.items():
            if merged.setdefault(name, part) is not part:
                raise DefinitionError(
                    f"{name!r} is in two files, and each has {what} of its own ({merged[name].name}, {part.name}); "
                    "import the same in both"
                )
    return merged


def folder_of(target: str) -> Path:
    """Return the folder to watch for changes: the file's, or for a module the working directory."""
    place = target.partition(":")[0]
    return Path(place).resolve().parent if _is_path(place) else Path.cwd()


# -- importing


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


def _import(place: str) -> ModuleType:
    if _is_path(place):
        return _explain_errors(place, lambda: _import_file(place))
    _put_on_path(Path.cwd())
    return _explain_errors(place, lambda: importlib.import_module(place))


def _import_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        hint = "it is a folder" if path.is_dir() else "there is no such file"
        raise DefinitionError(f"{place}: {hint}; give the Python file that defines the agent")
    _put_on_path(path.parent)
    name = _module_name(path)
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{place} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, as Python's own import does: the file's neighbours may import it.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        # A file that failed must be importable once its author has corrected it.
        del sys.modules[name]
        raise
    return module


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _module_name(path: Path) -> str:
    """Return the file's own name, by which its neighbours import it, or a longer name if that is taken."""
    loaded = sys.modules.get(path.stem)
    origin = getattr(loaded, "__file__", None)
    is_free = loaded is None and path.stem not in sys.stdlib_module_names
    if is_free or (origin is not None and Path(origin).resolve() == path):
        return path.stem
    return f"perdure_agents_{path.parent.name}_{path.stem}"


def _explain_errors(place: str, load: Callable[[], ModuleType]) -> ModuleType:
    """Load a module; turn any error into a DefinitionError that names the line of the user's file."""
    try:
        return load()
    except DefinitionError as error:
        line = _user_line(error)
        raise DefinitionError(f"{line}: {error}" if line else str(error)) from error
    except SyntaxError as error:
        # The file never ran, so it has no frame; the error itself knows the line.
        line = f"{_relative(error.filename or place)}:{error.lineno or 1}"
        raise DefinitionError(f"{line}: {type(error).__name__}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        line = _user_line(error) or place
        raise DefinitionError(f"{line}: does not import: {type(error).__name__}: {text}") from error


def _user_line(error: BaseException) -> str | None:
    """Return `file:line` of the deepest frame in the user's code, or None if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{_relative(frames[-1].filename)}:{frames[-1].lineno}" if frames else None


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):  # generated code, or Python's own import
        return False
    path = Path(filename).resolve()
    return not any(path.is_relative_to(folder) for folder in _foreign_folders())


def _foreign_folders() -> list[Path]:
    """Return the folders of our package and of installed libraries."""
    rooms = Path(__file__).resolve().parent.parent  # of the package, or of the checkout
    names = ("perdure", "workflows", "activities", "workers", "starter")
    paths = sysconfig.get_paths()
    libraries = [paths["stdlib"], paths["purelib"], paths["platlib"], site.getusersitepackages()]
    return [*(rooms / name for name in names), *(Path(library).resolve() for library in libraries)]


def _relative(filename: str) -> str:
    path = Path(filename).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# -- definitions in a module


def _value_of(module: ModuleType, place: str, name: str) -> Any:
    if not hasattr(module, name):
        raise DefinitionError(f"{place} has no {name!r}")
    return getattr(module, name)


def _agents_in(values: Any) -> Iterator[Member]:
    for value in values:
        if isinstance(value, _KINDS):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in cast("Sequence[Any]", value) if isinstance(item, _KINDS))


def _distinct(agents: Iterator[Member]) -> Iterator[Member]:
    """Yield each agent once: a file may bind it to several names, and another file may import it."""
    seen: set[int] = set()
    for agent in agents:
        if id(agent) not in seen:
            seen.add(id(agent))
            yield agent


def _models_of(module: ModuleType, place: str) -> dict[str, Model]:
    """Return the providers in the module's variable `models`, if it holds any."""
    value = getattr(module, "models", None)
    if not isinstance(value, Mapping):
        return {}
    models: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    if not any(isinstance(model, Model) for model in models.values()):
        return {}  # the user's own variable, which only has the same name
    for name, model in models.items():
        if not isinstance(name, str) or not isinstance(model, Model):
            raise DefinitionError(
                f"{place}: models[{name!r}] is no Model; write a provider's name and an object with "
                "`stream` and `check`"
            )
    return dict(models)


def _only(kind: type[_Part], module: ModuleType, place: str, what: str, why: str) -> _Part | None:
    """Return the value of that kind that the module defines or imports, whatever its name is."""
    found = {id(value): value for value in vars(module).values() if isinstance(value, kind)}
    if len(found) > 1:
        names = ", ".join(value.name for value in found.values())
        raise DefinitionError(f"{place} has several {what} ({names}); {why}")
    return next(iter(found.values()), None)


# -- as a command


def describe(member: Member) -> dict[str, Any]:
    """Return the row of an agent or team in the table of `perdure agents`."""
    spec = member.spec()
    row: dict[str, Any] = {
        "name": member.name,
        "kind": spec.kind,
        "members": list(member.members),
        "spec_hash": spec.hash,
        "model": "",
        "fallbacks": [],
        "tools": [],
    }
    if isinstance(member, Agent):
        row |= {
            "model": member.models[0].name,
            "fallbacks": [config.name for config in member.models[1:]],
            "tools": [tool.name for tool in member.tools],
        }
    return row


def resolve_named(members: Sequence[Member], name: str) -> ResolvedAgent:
    """Return the spec of that name, with its members' specs, from these members and all that they run.

    Raises:
        DefinitionError: nothing has that name.

    """
    served = members_by_name(members)
    if name not in served:
        raise DefinitionError(f"nothing is called {name!r} here; there are: {', '.join(served)}")
    return resolve_member(served[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the definitions in the files; return 0, or 2 if the files cannot be loaded."""
    parser = argparse.ArgumentParser("python -m perdure.workers.load", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--spec", metavar="NAME", help="print the spec of that name as JSON")
    args = parser.parse_args(arguments)
    try:
        members = load_files(args.files).agents
        if args.spec is not None:
            text = resolve_named(members, args.spec).model_dump_json()
        elif args.json:
            text = json.dumps([describe(member) for member in members])
        else:
            rows = map(describe, members)
            text = "\n".join(f"{row['name']}\t{row['model'] or row['kind']}" for row in rows)
    except PerdureError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    # The last line: the file itself may have printed something while it was imported.
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
