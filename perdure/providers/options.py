"""Settings of a provider: the model of `ModelConfig.options`, and the errors for wrong ones."""

from typing import NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from perdure.errors import DefinitionError
from perdure.model import ModelConfig

O = TypeVar("O", bound="ProviderOptions")  # noqa: E741 - one letter, as for every type variable here


class ProviderOptions(BaseModel):
    """Options that every provider takes in `ModelConfig.options`; a provider subclasses it to add its own."""

    # Strict: "yes" for a bool, or "3" for an int, is a mistake that should be seen before the first call.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base_url: str | None = None
    """Address to call in place of the provider's own."""
    capabilities: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Fields of `Capabilities` that are otherwise for this model."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Fields to send unchanged, for settings that have no option here."""


def read_options(kind: type[O], config: ModelConfig) -> O:
    """Validate the config's options as `kind`.

    Raises:
        DefinitionError: an option is unknown, or its value is invalid.

    """
    # Checked before pydantic, whose message for an extra field does not list the known ones.
    unknown = sorted(set(config.options) - set(kind.model_fields))
    if unknown:
        known = ", ".join(sorted(kind.model_fields))
        raise DefinitionError(f"{config.name}: unknown option {unknown[0]!r}; the known ones are {known}")
    try:
        return kind.model_validate(config.options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise DefinitionError(f"{config.name}: option {where!r}: {first['msg']}") from None


def reject_setting(config: ModelConfig, setting: str, advice: str) -> NoReturn:
    """Raise the error for a setting of `ModelConfig` that the provider does not take.

    Raises:
        DefinitionError: always; `advice` ends its message.

    """
    raise DefinitionError(f"{config.name}: this provider does not take {setting}; {advice}")
