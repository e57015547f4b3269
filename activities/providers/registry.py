"""The built-in providers: an entry for each, and the models that a worker knows by name.

To build a provider in, write its adapter, add an entry here, and add the fields that the entry names to
`perdure.settings.Settings`. A library that the core does not need becomes an extra in pyproject.toml.

Importing this module imports no provider's library: a worker pays only for those that its agents use.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, cast

from pydantic import SecretStr

from perdure.model import Model, ModelConfig, ModelEvent, ModelRequest
from perdure.settings import Settings, variables

from .env_file import EnvFileKey, key_of_setting


@dataclass(frozen=True, kw_only=True)
class BuiltInProvider:
    """Facts about a built-in provider, readable without its library."""

    module: str
    """Module of the adapter, relative to this package."""
    model: str
    """Class of the adapter in that module."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Arguments of the class that come from `Settings`, each with its field there."""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of the class that are always the same."""
    telemetry_name: str | None = None
    """Name of the provider in OpenTelemetry's conventions, where that is another than ours."""
    connection_errors: tuple[str, ...] = ()
    """Errors of the provider's library for a lost connection, as "package.Class"; timeouts included."""
    timeout_errors: tuple[str, ...] = ()
    """Errors of the provider's library for an answer that did not come in time, as "package.Class"."""


_COMPATIBLE: Final = (
    *("vllm", "lmstudio", "deepseek", "fireworks", "groq", "mistral", "openrouter", "together", "xai"),
    "compatible",
)
"""Servers that speak OpenAI's chat completions. The last is any: the agent or the worker gives its address."""
_TELEMETRY_NAMES: Final = {"mistral": "mistral_ai", "xai": "x_ai"}

BUILT_IN: Final[Mapping[str, BuiltInProvider]] = {
    "anthropic": BuiltInProvider(
        module=".anthropic",
        model="AnthropicModel",
        settings={"api_key": "anthropic_api_key"},
        connection_errors=("anthropic.APIConnectionError",),
        timeout_errors=("anthropic.APITimeoutError",),
    ),
    "bedrock": BuiltInProvider(
        module=".bedrock",
        model="BedrockModel",
        settings={"region": "bedrock_region"},
        telemetry_name="aws.bedrock",
    ),
    "openai": BuiltInProvider(
        module=".openai",
        model="OpenAIModel",
        settings={"api_key": "openai_api_key", "base_url": "openai_base_url", "keys": "model_keys"},
        connection_errors=("openai.APIConnectionError",),
        timeout_errors=("openai.APITimeoutError",),
    ),
    "responses": BuiltInProvider(
        module=".responses",
        model="ResponsesModel",
        settings={"api_key": "openai_api_key", "base_url": "openai_base_url", "keys": "model_keys"},
        telemetry_name="openai",
    ),
    "azure": BuiltInProvider(
        module=".azure",
        model="AzureModel",
        settings={
            "api_key": "azure_api_key",
            "endpoint": "azure_endpoint",
            "api_version": "azure_api_version",
        },
        telemetry_name="azure.ai.openai",
    ),
    "gemini": BuiltInProvider(
        module=".gemini",
        model="GeminiModel",
        settings={"api_key": "gemini_api_key"},
        telemetry_name="gcp.gemini",
    ),
    "ollama": BuiltInProvider(
        module=".openai",
        model="OpenAIModel",
        settings={"base_url": "ollama_base_url", "keys": "model_keys"},
        arguments={"provider": "ollama"},
    ),
    **{
        name: BuiltInProvider(
            module=".openai",
            model="OpenAIModel",
            settings={"keys": "model_keys"},
            arguments={"provider": name},
            telemetry_name=_TELEMETRY_NAMES.get(name),
        )
        for name in _COMPATIBLE
    },
}
"""Built-in providers by the name before the colon of a model's name."""


class LazyModel:
    """A model whose library is imported by the first call that needs it."""

    def __init__(self, module: str, name: str, **arguments: Any) -> None:
        self._module, self._name, self._arguments = module, name, arguments
        self._loaded: Model | None = None

    @property
    def _model(self) -> Model:
        if self._loaded is None:
            model: Model = getattr(import_module(self._module, __package__), self._name)(**self._arguments)
            self._loaded = model
        return self._loaded

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Stream the model's answer; see `Model.stream`."""
        return self._model.stream(request)

    def check(self, config: ModelConfig) -> None:
        """Refuse what the model does not take; see `Model.check`."""
        self._model.check(config)


def default_models(settings: Settings | None = None) -> dict[str, Model]:
    """Return the built-in models by provider name.

    An adapter reads what the settings leave open from its provider's own environment variables.
    """
    # Without validation: it would read the environment, and here unset means "let the adapter decide".
    chosen = settings or Settings.model_construct()
    return {name: _lazy_model(provider, chosen) for name, provider in BUILT_IN.items()}


def _lazy_model(provider: BuiltInProvider, settings: Settings) -> LazyModel:
    configured = {name: _reveal(key, getattr(settings, key)) for name, key in provider.settings.items()}
    return LazyModel(provider.module, provider.model, **configured, **provider.arguments)


def _reveal(name: str, value: Any) -> str | EnvFileKey | dict[str, str] | None:
    """Return the value of a setting, with its secrets: one that stands in `.env` is read again when that changes."""
    match value:
        case SecretStr():
            return key_of_setting(variables(name)[0], value.get_secret_value())
        case dict():
            secrets = cast("dict[str, SecretStr]", value)
            return {address: secret.get_secret_value() for address, secret in secrets.items()}
        case _:
            return value  # type: ignore[no-any-return]


def telemetry_name(provider: str) -> str:
    """Return the name of a provider in OpenTelemetry's conventions; built-in or not."""
    entry = BUILT_IN.get(provider)
    return (entry and entry.telemetry_name) or provider
