"""Settings of a process: read from PERDURE_ variables and `.env`, then frozen.

Importing this module reads nothing; `load_settings` does. Arguments win over the environment, the environment
over `.env`, `.env` over the defaults. `python -m perdure.settings` prints docs/settings.md.
"""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from perdure.definitions import explain
from perdure.errors import DefinitionError

PREFIX = "PERDURE_"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")


def _parse_duration(value: Any) -> Any:
    """Return the time for "150ms", "30s", "2m", "1h" or a number of seconds; leave the rest to pydantic."""
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        return value
    try:
        return timedelta(seconds=float(match[1]) * _UNITS[match[2] or "s"])
    except OverflowError:
        raise ValueError("is too long") from None


def _expand_home(value: Any) -> Any:
    """Return the path with `~` expanded: no shell does that in a `.env` file or a manifest."""
    try:
        return Path(value).expanduser() if isinstance(value, str | Path) else value
    except RuntimeError as error:  # "~user" of an unknown user
        raise ValueError(f"no such home: {error}") from None


def _check_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    # A URL is the usual slip.
    if not host or "/" in value or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("write it as host:port, such as localhost:7233")
    return value


def _check_blob_store(url: str) -> str:
    if not url.startswith(("file:", "s3://", "python:")):
        raise ValueError("write it as file:/a/folder, s3://bucket/prefix or python:module:function")
    return url


def _check_hosts(hosts: str) -> str:
    for host in hosts.split(","):
        if not re.fullmatch(r"https?://[^\s/,?#@]+", host.strip()):
            raise ValueError("write them as https://host or https://host:port, separated by commas")
    return hosts


def _check_model_keys(keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for address in keys:
        _check_hosts(address)
    return keys


def _check_deployment_name(name: str) -> str:
    if name.startswith("__") or "." in name or ":" in name:
        raise ValueError('must contain no "." or ":" and not begin with "__": Temporal reserves these')
    return name


Duration = Annotated[timedelta, BeforeValidator(_parse_duration), Field(gt=timedelta())]
Grace = Annotated[timedelta, BeforeValidator(_parse_duration), Field(ge=timedelta())]
FilePath = Annotated[Path, BeforeValidator(_expand_home)]
Count = Annotated[int, Field(ge=1)]
Address = Annotated[str, AfterValidator(_check_address)]


def _check_rate_store(url: SecretStr) -> SecretStr:
    if not re.fullmatch(r"memory|rediss?://.+", url.get_secret_value()):
        raise ValueError("write it as memory or redis://host:port/number")
    return url


class RateLimit(BaseModel):
    """Most calls and tokens in a minute; None is no bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_bounds(cls, limit: Any) -> Any:
        if not isinstance(limit, dict) or not limit:
            raise ValueError('write {"calls": 100}, {"tokens": 40000}, or both')
        return limit  # pyright: ignore[reportUnknownVariableType]

    calls: Annotated[int, Field(ge=1)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens read and written, cached ones included."""


def _or_variable(name: str, temporal: str) -> AliasChoices:
    """Return our variable, then the variable that Temporal's own tools and controllers set."""
    return AliasChoices(PREFIX + name.upper(), temporal)


class Settings(BaseSettings):
    """Settings of a worker, client or command.

    Secrets are `SecretStr`: printing or logging a Settings shows none of them.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        # Manifests and compose files can blank a variable, not remove it.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # Callers pass fields by their names, the environment by those of its variables.
        populate_by_name=True,
    )

    # Temporal
    address: Address = Field(
        "localhost:7233",
        validation_alias=_or_variable("address", "TEMPORAL_ADDRESS"),
        description="Temporal frontend, as `host:port`.",
    )
    namespace: str = Field(
        "default",
        min_length=1,
        validation_alias=_or_variable("namespace", "TEMPORAL_NAMESPACE"),
        description="Temporal namespace.",
    )
    task_queue: str = Field(
        "perdure", min_length=1, description="Task queue of runs and of their activities."
    )
    api_key: SecretStr | None = Field(
        None,
        validation_alias=_or_variable("api_key", "TEMPORAL_API_KEY"),
        description="API key of Temporal Cloud; turns TLS on.",
    )
    tls: bool | None = Field(
        None, description="TLS to Temporal. Unset: on when an API key or a certificate is set."
    )
    tls_ca: FilePath | None = Field(
        None, description="File with the CA certificates for verifying the server."
    )
    tls_cert: FilePath | None = Field(None, description="File with the client certificate (mTLS).")
    tls_key: FilePath | None = Field(None, description="File with the client certificate's private key.")

    # Storage
    home: FilePath = Field(
        default_factory=lambda: Path.home() / ".perdure",
        description="Folder of the embedded server's database and of local blobs.",
    )
    blob_store: Annotated[str, AfterValidator(_check_blob_store)] = Field(
        default_factory=lambda data: f"file:{data['home']}/blobs",
        description="Blob store: `file:<folder>`, `s3://bucket/prefix`, or `python:module:function` for your "
        "own. Workers and clients share it.",
    )
    blob_threshold_bytes: Annotated[int, Field(ge=1024, le=1_500_000)] = Field(
        32_768, description="Payloads of this many bytes and more go to the blob store, not to history."
    )
    blob_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        32 * 1024 * 1024,
        description="Memory for recent blobs in each worker and client: this much for payloads, and as "
        "much for long results and media.",
    )
    blob_s3_endpoint: str | None = Field(None, description="S3 endpoint URL, for MinIO and the like.")
    blob_s3_region: str | None = Field(None, description="S3 region. Unset: the AWS configuration's.")
    payload_codec: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = Field(
        None,
        description="Function that makes the payload codec, `module:function`, such as one that encrypts. It also "
        "encodes results and media in the blob store. Workers and clients share it.",
    )
    prices: FilePath | None = Field(None, description="JSON price table that is read before the shipped one.")
    transcript_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        64 * 1024 * 1024,
        description="Memory for transcripts of running agents. With 0, each call asks the run.",
    )

    # Model providers
    anthropic_api_key: SecretStr | None = Field(
        None, description="Anthropic API key. Unset: `ANTHROPIC_API_KEY` of the environment (not of `.env`)."
    )
    openai_api_key: SecretStr | None = Field(
        None, description="OpenAI API key. Unset: `OPENAI_API_KEY` of the environment."
    )
    openai_base_url: str | None = Field(
        None, description="Base URL of an OpenAI-compatible API. Unset: `OPENAI_BASE_URL`, then OpenAI."
    )
    azure_api_key: SecretStr | None = Field(
        None, description="Azure OpenAI key. Unset: `AZURE_OPENAI_API_KEY`, then `AZURE_OPENAI_AD_TOKEN`."
    )
    azure_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Address of your Azure OpenAI resource. Unset: `AZURE_OPENAI_ENDPOINT`.",
    )
    azure_api_version: str | None = Field(
        None, description="Date of Azure's API, such as `2024-10-21`. Unset: the API without dates."
    )
    gemini_api_key: SecretStr | None = Field(
        None, description="Gemini API key. Unset: `GEMINI_API_KEY`, then `GOOGLE_API_KEY` of the environment."
    )
    ollama_base_url: str | None = Field(
        None, description="Base URL of Ollama. Unset: `OLLAMA_HOST`, then `http://localhost:11434/v1`."
    )
    bedrock_region: str | None = Field(None, description="Region of Bedrock. Unset: the AWS configuration's.")
    model_keys: Annotated[dict[str, SecretStr], AfterValidator(_check_model_keys)] = Field(
        default_factory=dict,
        description='Keys of servers that speak OpenAI\'s API, by address: `{"https://gateway.example": "..."}`. '
        "Each goes to that address only.",
    )
    model_hosts: Annotated[str, AfterValidator(_check_hosts)] | None = Field(
        None,
        description="Addresses, separated by commas, to which the worker's keys may go beside those that its "
        "agents name: `https://old-gateway.example`. For runs of an earlier version.",
    )

    # Reporting
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity of log lines that are written."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Format of log lines. `auto`: text on a terminal, else JSON."
    )
    capture_content: bool = Field(
        False,
        description="Record the contents of messages, tool arguments and results in traces, and let libraries quote "
        "them in the log at level debug.",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="OTLP/HTTP base URL for traces, such as `http://localhost:4318`. Needs `perdure[otlp]`.",
    )
    metrics: Literal["off", "prometheus", "otlp"] = Field(
        "off",
        description="Export of metrics: scraped by Prometheus (`perdure[prometheus]`) or sent by OTLP.",
    )
    metrics_address: Address = Field(
        "127.0.0.1:9464",
        description="`host:port` that Prometheus scrapes. Temporal's own metrics are on the next port.",
    )
    health_address: Address | None = Field(
        None, description="`host:port` of `/live` and `/ready`, such as `0.0.0.0:8080`. Unset: none."
    )

    # Worker
    progress_interval: Duration = Field(
        timedelta(milliseconds=150),
        description="Interval at which a watched call reports progress and notices a stop.",
    )
    max_concurrent_activities: Count = Field(
        100, description="Most model and tool calls at the same time in one worker."
    )
    max_lost_threads: Count = Field(
        100,
        description="Most threads of one worker that hang in functions that were given up. With so many, it calls no "
        "further function that is not async, and is not ready.",
    )
    max_concurrent_workflow_tasks: Annotated[int, Field(ge=2)] = Field(
        100, description="Most workflow tasks at the same time in one worker."
    )
    max_cached_workflows: Annotated[int, Field(ge=0)] = Field(
        1000, description="Most runs kept in memory between tasks. With 0, each task is a replay."
    )
    graceful_shutdown_timeout: Grace = Field(
        timedelta(seconds=20),
        description="Time for pending calls after a shutdown signal. Then another worker repeats them. A "
        "container's grace period must be 10 seconds longer.",
    )
    rate_limits: dict[str, RateLimit] = Field(
        default_factory=dict,
        description='Most calls and tokens a minute by provider, model or tool: `{"anthropic": '
        '{"calls": 1000, "tokens": 400000}, "tool:search": {"calls": 60}}`. Needs `perdure[limits]`.',
    )
    rate_limit_store: Annotated[SecretStr, AfterValidator(_check_rate_store)] = Field(
        SecretStr("memory"),
        description="Store of rate limits: `memory` (each worker counts for itself) or a `redis://` URL.",
    )
    circuit_threshold: Count = Field(
        5, description="Failures in a row after which a worker stops calling a model for a while."
    )
    circuit_wait: Duration = Field(
        timedelta(seconds=15),
        description="First wait of an open circuit before one call. Failures double it, up to 4 times.",
    )
    parked_retry: Duration = Field(
        timedelta(seconds=30),
        description="Approximate first wait of a run parked by an outage. Later waits are longer.",
    )
    search_attributes: bool = Field(
        True, description="Set search attributes on runs. Use false where they cannot be registered."
    )
    strict_sandbox: bool = Field(
        False,
        description="Let Temporal's sandbox check Perdure's own workflow code too. For people who change it.",
    )
    deployment_name: Annotated[str, AfterValidator(_check_deployment_name)] | None = Field(
        None,
        validation_alias=_or_variable("deployment_name", "TEMPORAL_DEPLOYMENT_NAME"),
        description="Worker deployment of this worker and of `perdure deploy`. Unset: unversioned.",
    )
    build_id: str | None = Field(
        None,
        validation_alias=_or_variable("build_id", "TEMPORAL_WORKER_BUILD_ID"),
        description="Version of this worker in its deployment: a release, or a digest of the code.",
    )

    @property
    def named_model_hosts(self) -> tuple[str, ...]:
        """Addresses of `model_hosts`, each by itself."""
        return tuple(host.strip() for host in (self.model_hosts or "").split(",") if host.strip())

    @field_validator("tls_key")
    @classmethod
    def _check_key_pair(cls, key: Path | None, info: Any) -> Path | None:
        if (key is None) != (info.data.get("tls_cert") is None):
            raise ValueError("a client certificate and its key go together: set both or neither")
        return key

    @field_validator("build_id")
    @classmethod
    def _check_build_id(cls, build_id: str | None, info: Any) -> str | None:
        if build_id is not None and info.data.get("deployment_name") is None:
            raise ValueError("a build id belongs to a deployment: set PERDURE_DEPLOYMENT_NAME too")
        return build_id


def load_settings(**overrides: Any) -> Settings:
    """Return the settings of this process; an override of None counts as absent.

    Raises:
        DefinitionError: a value is wrong; the message names its variable and shows no secret.

    """
    # Settings ignores unknown names, because `.env` may hold those of other programs; a caller's are slips.
    unknown = sorted(overrides.keys() - Settings.model_fields.keys())
    if unknown:
        raise DefinitionError(f"no such setting: {', '.join(unknown)}; see docs/settings.md")
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise DefinitionError(f"settings: {explain(_by_variable(error))}") from None
    except SettingsError as error:
        raise DefinitionError(f"settings: {_json_problem(error)}") from None
    except (OSError, UnicodeError) as error:
        raise DefinitionError(f"settings: .env cannot be read: {error}") from None


def variables(name: str) -> tuple[str, ...]:
    """Return the environment variables that set the field; the first that is set wins."""
    alias = Settings.model_fields[name].validation_alias
    return tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else (PREFIX + name.upper(),)


def _json_problem(error: SettingsError) -> str:
    field = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), None)
    if field is None:
        return str(error)
    return f"{variables(field)[0]}: it is not JSON; see docs/settings.md for the format"


def _by_variable(error: ValidationError) -> ValidationError:
    """Return the same error with variables in place of fields, and secrets masked."""
    # "default_factory_not_called" only says that another field is wrong.
    causes = (problem for problem in error.errors() if problem["type"] != "default_factory_not_called")
    return ValidationError.from_exception_data(error.title, [_name_variable(problem) for problem in causes])


def _name_variable(problem: Any) -> InitErrorDetails:
    place = str(problem["loc"][0]) if problem["loc"] else ""
    field = next((name for name in Settings.model_fields if place in (name, *variables(name))), None)
    kind = Settings.model_fields[field].annotation if field else None
    # A value of an unknown field may be a secret under a mistyped name.
    secret = field is None or kind is SecretStr or SecretStr in get_args(kind)
    return InitErrorDetails(
        type=PydanticCustomError("setting", "{what}", {"what": problem["msg"].removeprefix("Value error, ")}),
        loc=(variables(field)[0] if field else place, *problem["loc"][1:]),
        input="**********" if secret else problem["input"],
    )


# Documentation of the settings, which a test compares with docs/settings.md.

_TYPE_NAMES = {
    Path: "path",
    SecretStr: "secret",
    timedelta: "duration",
    str: "text",
    int: "number",
    bool: "yes/no",
}
_DEFAULTS = {"home": "`~/.perdure`", "blob_store": "`file:<home>/blobs`"}
_HEAD = """\
# Settings

<!-- Written by `python -m perdure.settings > docs/settings.md`; a test holds the two equal. -->

Every setting is an environment variable, or a line of a `.env` file in the working directory.
Command line options win over the environment, and the environment wins over `.env`.
Durations are written `150ms`, `30s`, `2m`, `1h`. A bare number is seconds. Empty means unset.
Secrets are never printed or logged.
"""
_TABLE = """
## {title}

| variable | type | default | meaning |
| --- | --- | --- | --- |
"""
# Sections by their first field, in the order of the fields.
_SECTIONS = {
    "address": "Temporal",
    "home": "Storage and prices",
    "anthropic_api_key": "Model providers",
    "log_level": "Logs, traces, metrics and health",
    "progress_interval": "Worker",
    "rate_limits": "Rate limits, circuits and parked runs",
    "search_attributes": "Search attributes and sandbox",
    "deployment_name": "Deploys",
}


def _kind(annotation: Any) -> str:
    """Return the name of a field's type, or its values when it takes only some."""
    if annotation in _TYPE_NAMES:
        return _TYPE_NAMES[annotation]
    if get_origin(annotation) is dict:
        return "JSON"
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    return _kind(parts[0])


def _default(name: str, field: FieldInfo) -> str:
    if name in _DEFAULTS or field.default is None or field.default is PydanticUndefined:
        return _DEFAULTS.get(name, "")
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    if isinstance(value, timedelta):
        millis = round(value.total_seconds() * 1000)
        return f"`{millis // 1000}s`" if millis % 1000 == 0 else f"`{millis}ms`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _row(name: str, field: FieldInfo) -> str:
    first, *aliases = (f"`{variable}`" for variable in variables(name))
    names = f"{first} (or {', '.join(aliases)})" if aliases else first
    return f"| {names} | {_kind(field.annotation)} | {_default(name, field)} | {field.description} |"


def document() -> str:
    """Return docs/settings.md: all settings as Markdown tables, one a section."""
    page = _HEAD
    for name, field in Settings.model_fields.items():
        if name in _SECTIONS:
            page += _TABLE.format(title=_SECTIONS[name])
        page += _row(name, field) + "\n"
    return page


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - the module prints its document
