"""Keys: where they come from, when a renewed one is used, and to whom it goes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.activities.content.redact import redact
from perdure.activities.providers.anthropic import AnthropicModel
from perdure.activities.providers.azure import AzureModel
from perdure.activities.providers.openai import OpenAIModel
from perdure.activities.providers.registry import default_models
from perdure.errors import DefinitionError, ErrorKind, ModelError
from perdure.model import Model, ModelConfig, ModelRequest
from perdure.settings import load_settings

from .conftest import Wire
from .dialects import ANTHROPIC, OPENAI, Dialect, StubReply
from .server import Stub

OK = StubReply(text=("ok",))

MODELS: list[tuple[str, Dialect, str, Callable[[str], Any]]] = [
    ("anthropic:m", ANTHROPIC, "ANTHROPIC_API_KEY", lambda url: AnthropicModel(base_url=url)),
    ("openai:m", OPENAI, "OPENAI_API_KEY", lambda url: OpenAIModel(base_url=url)),
    ("groq:m", OPENAI, "GROQ_API_KEY", lambda url: OpenAIModel(base_url=url, provider="groq")),
    ("vllm:m", OPENAI, "VLLM_API_KEY", lambda url: OpenAIModel(base_url=url, provider="vllm")),
    ("azure:m", OPENAI, "AZURE_OPENAI_API_KEY", lambda url: AzureModel(endpoint=url)),
]


async def sent_key(server: Stub, dialect: Dialect, model: Model, name: str, **options: Any) -> str:
    """Return the key that a call brings to the server."""
    server.script(dialect.answer(OK))
    config = ModelConfig(name=name, options=options)
    model.check(config)
    assert [event async for event in model.stream(ModelRequest(config=config))]
    headers = server.requests[-1].headers
    return headers.get("authorization", "").removeprefix("Bearer ") or headers.get("api-key", "")


@pytest.mark.parametrize(("name", "dialect", "variable", "make"), MODELS, ids=[row[0] for row in MODELS])
async def test_renewed_key_file_is_used(
    *,
    name: str,
    dialect: Dialect,
    variable: str,
    make: Callable[..., Any],
    server: Stub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next call brings the key that stands in the file by then; no text that leaves shows either."""
    file = tmp_path / "key"
    monkeypatch.setenv(f"{variable}_FILE", str(file))
    model = make(server.url)
    for key in ("first-secret-key", "second-secret-key"):
        file.write_text(f"{key}\n")
        assert await sent_key(server, dialect, model, name) == key
        assert key not in redact(f"the key {key} is wrong")
    await model.aclose()


async def test_missing_key_file_is_authentication(server: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable."""
    monkeypatch.setenv("OPENAI_API_KEY_FILE", "/nowhere/key")
    with pytest.raises(ModelError, match="OPENAI_API_KEY_FILE") as caught:
        OpenAIModel().check(ModelConfig(name="openai:m"))
    assert caught.value.kind == "authentication"


async def test_renewed_key_of_dotenv_is_used(
    server: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that the settings found in `.env` is read again; one that code gave is not."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".env"
    url = f"{server.url}/v1"
    file.write_text(f"PERDURE_OPENAI_API_KEY=one-key\nPERDURE_OPENAI_BASE_URL={url}\n")
    models = default_models(load_settings())
    fixed = default_models(load_settings(openai_api_key="code-key"))
    assert await sent_key(server, OPENAI, models["openai"], "openai:m") == "one-key"
    file.write_text(f"PERDURE_OPENAI_API_KEY=another-key\nPERDURE_OPENAI_BASE_URL={url}\n")
    assert await sent_key(server, OPENAI, models["openai"], "openai:m") == "another-key"
    assert await sent_key(server, OPENAI, fixed["openai"], "openai:m") == "code-key"
    file.unlink()
    assert await sent_key(server, OPENAI, models["openai"], "openai:m") == "another-key"
    for each in (models, fixed):
        await each["openai"]._model.aclose()  # type: ignore[attr-defined]


async def test_function_gives_the_key_of_the_moment(server: Stub) -> None:
    keys = iter(["first-token", "second-token"])
    model = OpenAIModel(lambda: next(keys), f"{server.url}/v1")
    assert await sent_key(server, OPENAI, model, "openai:m") == "first-token"
    assert await sent_key(server, OPENAI, model, "openai:m") == "second-token"
    assert "second-token" not in redact("second-token")
    await model.aclose()


class ServiceRequestError(Exception):
    """The name by which azure-identity raises a lost connection."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no such user"), "authentication"),
        (ConnectionResetError("gone"), "connection"),
        (TimeoutError(), "connection"),
        (ServiceRequestError("gone"), "connection"),
        (ModelError("payment", "the vault is not paid"), "payment"),
        (None, "authentication"),
    ],
)
async def test_failed_key_function_has_a_kind(
    openai_wire: Wire, error: Exception | None, kind: ErrorKind
) -> None:
    """A service that is not reached is tried again; a refusal waits for a person."""

    def give() -> str | None:
        if error is not None:
            raise error
        return None

    with pytest.raises(ModelError) as caught:
        [e async for e in OpenAIModel(give).stream(openai_wire.request())]
    assert caught.value.kind == kind


async def test_key_of_an_address_goes_there_only(server: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server of the same provider gets the provider's own key, or none."""
    keys = {server.url: "key-of-here", "https://other.example": "key-of-there"}
    model = OpenAIModel(provider="compatible", keys=keys)
    url = f"{server.url}/v1"
    assert await sent_key(server, OPENAI, model, "compatible:m", base_url=url) == "key-of-here"
    elsewhere = url.replace("127.0.0.1", "localhost")
    assert await sent_key(server, OPENAI, model, "compatible:m", base_url=elsewhere) == "none"
    monkeypatch.setenv("COMPATIBLE_API_KEY", "common-key")
    assert await sent_key(server, OPENAI, model, "compatible:m", base_url=elsewhere) == "common-key"
    await model.aclose()


def test_settings_give_keys_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are secrets, and an address is no address without its scheme."""
    monkeypatch.setenv("PERDURE_MODEL_KEYS", '{"https://gateway.example": "gateway-secret"}')
    settings = load_settings()
    assert "gateway-secret" not in repr(settings)
    assert settings.model_keys["https://gateway.example"].get_secret_value() == "gateway-secret"
    monkeypatch.setenv("PERDURE_MODEL_KEYS", '{"gateway.example": "gateway-secret"}')
    with pytest.raises(DefinitionError, match="https://host") as caught:
        load_settings()
    assert "gateway-secret" not in str(caught.value)


# -- Azure


@pytest.mark.parametrize(
    ("made", "version", "path", "header", "value"),
    [
        ({"api_key": "k"}, None, "/openai/v1/chat/completions", "authorization", "Bearer k"),
        ({"token": lambda: "t"}, None, "/openai/v1/chat/completions", "authorization", "Bearer t"),
        (
            {"api_key": "k"},
            "2024-10-21",
            "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21",
            "api-key",
            "k",
        ),
        (
            {"token": lambda: "t"},
            "2024-10-21",
            "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21",
            "authorization",
            "Bearer t",
        ),
    ],
    ids=["key", "token", "dated key", "dated token"],
)
async def test_azure_is_called_under_its_address(
    *, server: Stub, made: dict[str, Any], version: str | None, path: str, header: str, value: str
) -> None:
    model = AzureModel(endpoint=f"{server.url}/", api_version=version, **made)
    await sent_key(server, OPENAI, model, "azure:my-gpt")
    received = server.requests[-1]
    assert received.path == path
    assert received.headers[header] == value
    assert received.body["max_completion_tokens"] == 8192
    await model.aclose()


@pytest.mark.parametrize("version", [None, "2024-10-21"])
async def test_azure_renews_its_token(server: Stub, version: str | None) -> None:
    tokens = iter(["one-token", "two-token"])
    model = AzureModel(endpoint=server.url, token=lambda: next(tokens), api_version=version)
    assert await sent_key(server, OPENAI, model, "azure:m") == "one-token"
    assert await sent_key(server, OPENAI, model, "azure:m") == "two-token"
    await model.aclose()


def test_azure_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="azure:m")
    with pytest.raises(DefinitionError, match="AZURE_OPENAI_ENDPOINT"):
        AzureModel().check(config)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://shop.openai.azure.com")
    with pytest.raises(ModelError, match="AZURE_OPENAI_API_KEY"):
        AzureModel().check(config)
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "token")
    AzureModel().check(config)
