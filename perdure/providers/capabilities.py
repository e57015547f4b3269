"""Capabilities of models: what each provider takes in a request, and each family of models behind it. Pure.

`capabilities_of` reads one table. A row names providers, and a family by pieces of its models' names. Every row that
fits applies, from the first to the last. What nobody knows counts as taken: a request that a provider refuses all the
same is sent once more in plain form, and an agent is refused only for what its provider is known to refuse.

A user who knows better sets fields for a model: `ModelConfig(options={"capabilities": {...}})`.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from perdure.errors import DefinitionError
from perdure.model import ModelConfig

ThoughtReturn = Literal["signed", "returned", "none"]

_MIB: Final = 1024 * 1024
_PHOTOS: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
_TEXT: Final = "text/*"
_PDF: Final = "application/pdf"
_OFFICE: Final = (
    "application/msword",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/vnd.ms-excel",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
)
_NINE_LETTERS: Final = r"[a-zA-Z0-9]{9}"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Forms and bounds of a request that a model takes. A bound that is None is not known, and bounds nothing."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    system_prompt: bool = True
    """False: the instructions stand at the beginning of the first message."""
    tools: bool = True
    """False: no tools are listed, and earlier calls are written in words."""
    most_tools: int | None = None
    """Most tools in a request."""
    forced_tool: bool = True
    """True: the model can be made to call a tool."""
    tool_name: str = r"[a-zA-Z0-9_-]{1,64}"
    """Pattern of the names of tools."""
    call_id: str = r"[a-zA-Z0-9_-]{1,64}"
    """Pattern of the ids of tool calls. An id that does not fit is replaced by nine letters and digits."""
    property_name: str | None = None
    """Pattern of the names of a tool's parameters. None: any."""
    keywords: tuple[str, ...] | None = None
    """Keywords of a JSON schema, at any depth. None: all. A schema is sent without the others."""
    top_keywords: tuple[str, ...] | None = None
    """Keywords at the top of a schema. None: as at any depth."""
    refused_top_keywords: tuple[str, ...] = ()
    """Keywords that are refused at the top of a schema alone."""
    references: bool = True
    """False: a schema is sent without `$ref`, with what it refers to in its place."""
    most_depth: int | None = None
    """Most schemas within each other."""
    images: tuple[str, ...] = _PHOTOS
    """Media types of images that it reads."""
    most_images: int | None = None
    """Most images in a request."""
    most_image_bytes: int | None = None
    """Most bytes of an image, before they are encoded."""
    most_image_side: int | None = None
    """Most pixels of a side of an image."""
    most_large_images: int | None = None
    """Most images in a request of which one has more than `most_large_side` pixels a side."""
    most_large_side: int | None = None
    documents: tuple[str, ...] = (_TEXT,)
    """Media types of documents that it reads."""
    most_documents: int | None = None
    """Most documents in a request."""
    most_document_bytes: int | None = None
    """Most bytes of a document, before they are encoded."""
    most_bytes_of_files: int | None = None
    """Most bytes of all images and documents of a request, before they are encoded."""
    files_in_results: bool = True
    """True: a tool's result may hold images and documents. False: they follow the results, as the user's."""
    text_beside_results: bool = True
    """False: a turn with results of tools holds nothing else."""
    thinking: ThoughtReturn = "none"
    """Return of reasoning to the model that gave it: "signed" with its signature, "returned" as plain text, without
    which the model refuses calls, or "none"."""
    thought_begins_turn: bool = False
    """True: a model with a budget for thinking goes on only with a turn that began with a thought of its own."""
    thinking_field: str = "reasoning_content"
    """Field of the message in which plain reasoning goes back."""
    call_signature: dict[str, JsonValue] | None = field(default=None, hash=False)
    """Fields of the first call of a message that came without a signature, where the provider demands one."""
    caching: bool = False
    """True: ends of cached prefixes are marked."""
    output_schema: bool = False
    """True: the model can be held to a schema without a tool."""
    paused_turns: bool = False
    """True: the provider runs tools of its own, and may pause a turn for them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Row of the table: fields of the models whose provider and name fit."""

    providers: tuple[str, ...]
    """Names of providers; empty: every provider without rows of its own."""
    family: tuple[str, ...] = ()
    """Pieces of "provider:model", of which one must be in it; empty: every model of the provider."""
    fields: dict[str, Any]

    def fits(self, provider: str, model: str) -> bool:
        """Check whether the row applies to a model."""
        named = provider in self.providers if self.providers else provider not in NAMED_PROVIDERS
        name = f"{provider}:{model}"
        return named and (not self.family or any(piece in name for piece in self.family))


_GEMINI_KEYWORDS: Final = (
    *(
        "type",
        "format",
        "title",
        "description",
        "nullable",
        "enum",
        "items",
        "minItems",
        "maxItems",
        "properties",
    ),
    *(
        "required",
        "minProperties",
        "maxProperties",
        "minLength",
        "maxLength",
        "pattern",
        "anyOf",
        "minimum",
        "maximum",
    ),
)
_GEMINI_JSON_KEYWORDS: Final = (
    *("type", "format", "title", "description", "enum", "items", "prefixItems", "minItems", "maxItems"),
    *("minimum", "maximum", "anyOf", "oneOf", "properties", "additionalProperties", "required"),
)
"""Keywords of its own API, which takes JSON schemas; the compatible one takes those of OpenAPI."""
_COMBINED: Final = ("oneOf", "anyOf", "allOf", "enum", "not")
_SKIPPED: Final = "skip_thought_signature_validator"
_OF_OPENAI: Final = ("openai", "azure", "responses")
_COMPATIBLE: Final = ("openai", "vllm", "ollama")
_LOCAL: Final = ("vllm", "ollama")
_CLAUDE: Final[dict[str, Any]] = {
    "property_name": r"[a-zA-Z0-9_.-]{1,64}",
    "refused_top_keywords": ("oneOf", "anyOf", "allOf"),
    "thinking": "signed",
    "thought_begins_turn": True,
    "caching": True,
    "most_image_side": 8000,
}
_CHAT_FAMILIES: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (
        ("mistral", "mixtral", "ministral", "magistral", "codestral", "devstral"),
        {"call_id": _NINE_LETTERS, "text_beside_results": False},
    ),
    (("deepseek",), {"thinking": "returned", "images": (), "documents": (_TEXT,)}),
    (("deepseek-vl", "deepseek-ocr"), {"images": _PHOTOS}),
    (("deepseek-reasoner",), {"forced_tool": False}),
    (("kimi", "glm-"), {"thinking": "returned", "documents": (_TEXT,)}),
    (("gemini",), {"keywords": _GEMINI_KEYWORDS, "references": False}),
    (
        ("gemini-3", "gemini-4"),
        {"call_signature": {"extra_content": {"google": {"thought_signature": _SKIPPED}}}},
    ),
    (
        ("gpt-oss",),
        {"thinking": "returned", "thinking_field": "reasoning", "images": (), "documents": (_TEXT,)},
    ),
    (("gpt-3.5", "o1-mini", "o3-mini"), {"images": (), "documents": (_TEXT,)}),
)
"""Families behind the chat completions API, whoever serves them."""

ROWS: Final[tuple[Row, ...]] = (
    Row(
        providers=("anthropic",),
        fields={
            **_CLAUDE,
            "tool_name": r"[a-zA-Z0-9_-]{1,128}",
            "most_images": 100,
            "most_large_images": 20,
            "most_large_side": 2000,
            "most_image_bytes": 5 * _MIB * 3 // 4,  # five MiB of base64
            "documents": (_PDF, _TEXT),
            "most_document_bytes": 22 * _MIB,
            "most_bytes_of_files": 22 * _MIB,  # 32 MB in all, of which base64 takes a third more
            "output_schema": True,
            "paused_turns": True,
        },
    ),
    Row(
        providers=_OF_OPENAI,
        fields={
            "call_id": r"[a-zA-Z0-9_-]{1,40}",
            "refused_top_keywords": _COMBINED,
            "documents": (_PDF, _TEXT),
            "files_in_results": False,
        },
    ),
    Row(
        providers=("openai",),
        family=("gpt-", "chatgpt", "o1", "o3", "o4"),
        fields={
            "most_tools": 128,
            "most_images": 500,
            "most_image_bytes": 35 * _MIB,
            "most_document_bytes": 35 * _MIB,
            "most_bytes_of_files": 35 * _MIB,  # 50 MB in all
            "output_schema": True,
        },
    ),
    Row(
        providers=("azure", "responses"),
        fields={"most_tools": 128, "most_bytes_of_files": 35 * _MIB, "output_schema": True},
    ),
    # Its signature is the encrypted form of a thought.
    Row(providers=("responses",), fields={"thinking": "signed", "files_in_results": True}),
    # Nobody knows what such a server stands before: it may be a model of Mistral's under any name.
    Row(providers=_LOCAL, fields={"call_id": _NINE_LETTERS, "files_in_results": False}),
    Row(
        providers=(),
        fields={"call_id": _NINE_LETTERS, "files_in_results": False, "documents": (_PDF, _TEXT)},
    ),
    *(Row(providers=_COMPATIBLE, family=family, fields=changes) for family, changes in _CHAT_FAMILIES),
    *(Row(providers=(), family=family, fields=changes) for family, changes in _CHAT_FAMILIES),
    Row(
        providers=("gemini",),
        fields={
            "tool_name": r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}",
            "keywords": _GEMINI_JSON_KEYWORDS,
            "references": False,
            "images": ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"),
            "documents": (_PDF, _TEXT),
            "most_document_bytes": 50 * _MIB,
            "files_in_results": False,
            "thinking": "signed",
            "output_schema": True,
        },
    ),
    Row(
        providers=("gemini",),
        family=("gemini-3", "gemini-4"),
        fields={"call_signature": {"thoughtSignature": _SKIPPED}},
    ),
    Row(
        providers=("bedrock",),
        fields={
            "most_images": 20,
            "most_image_bytes": 15 * _MIB // 4,
            "most_image_side": 8000,
            "documents": (_PDF, _TEXT, *_OFFICE),
            "most_documents": 5,
            "most_document_bytes": 9 * _MIB // 2,
            "files_in_results": False,
            "text_beside_results": False,
            "thinking": "signed",
        },
    ),
    Row(
        providers=("bedrock",),
        family=("anthropic.", "claude"),
        fields={**_CLAUDE, "files_in_results": True, "text_beside_results": True},
    ),
    Row(
        providers=("bedrock",),
        family=("amazon.nova",),
        fields={
            "top_keywords": ("type", "properties", "required"),
            "references": False,
            "files_in_results": True,
            "text_beside_results": True,
            "caching": True,
            "most_bytes_of_files": 18 * _MIB,  # 25 MB in all
        },
    ),
    Row(providers=("bedrock",), family=("amazon.nova-micro",), fields={"images": (), "documents": (_TEXT,)}),
    Row(
        providers=("bedrock",),
        family=("amazon.titan", "cohere.command-text", "cohere.command-light", "meta.llama2"),
        fields={"system_prompt": False, "tools": False},
    ),
    Row(
        providers=("bedrock",),
        family=("mistral.mistral-7b", "mistral.mixtral"),
        fields={"system_prompt": False, "tools": False},
    ),
    Row(
        providers=("bedrock",),
        family=("meta.llama3-8b", "meta.llama3-70b", "deepseek.r1"),
        fields={"tools": False},
    ),
    Row(providers=("bedrock",), family=("meta.llama",), fields={"forced_tool": False}),
    Row(
        providers=("bedrock",),
        family=(
            *(
                "meta.llama2",
                "meta.llama3-8b",
                "meta.llama3-70b",
                "meta.llama3-1",
                "meta.llama3-3",
                "mistral.",
            ),
            *("deepseek.", "cohere.", "ai21.", "amazon.titan", "openai.gpt-oss", "qwen."),
        ),
        fields={"images": ()},
    ),
    Row(providers=("bedrock",), family=("mistral.pixtral", "-vl"), fields={"images": _PHOTOS}),
)
"""The table. Sources are the providers' references and their refusals, as of November 2026."""

NAMED_PROVIDERS: Final = frozenset(name for row in ROWS for name in row.providers)
"""Providers with rows of their own."""

_FORM: Final = TypeAdapter(Capabilities)


def capabilities_of(config: ModelConfig, provider: str = "") -> Capabilities:
    """Return what the model of the config takes; `provider` where its adapter is another than its name says.

    Raises:
        DefinitionError: `options["capabilities"]` names an unknown field, or its value is invalid.

    """
    known = _capabilities(provider or config.provider, config.model.lower())
    changes = config.options.get("capabilities")
    return known if changes is None else _override(known, changes, config)


@lru_cache(maxsize=1024)
def _capabilities(provider: str, model: str) -> Capabilities:
    found: dict[str, Any] = {}
    for row in ROWS:
        if row.fits(provider, model):
            found |= row.fields
    return Capabilities(**found)


def _override(known: Capabilities, changes: JsonValue, config: ModelConfig) -> Capabilities:
    where = f"{config.name}: option 'capabilities'"
    if not isinstance(changes, dict):
        raise DefinitionError(f"{where}: it must be an object of fields, not {changes!r}")
    try:
        # As JSON: there a list may stand for a tuple in strict mode too.
        checked = _FORM.validate_json(json.dumps({**asdict(known), **changes}), strict=True)
        for pattern in (checked.tool_name, checked.call_id, checked.property_name or ""):
            re.compile(pattern)
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(str(step) for step in first["loc"])
        raise DefinitionError(f"{where}: {field_name!r}: {first['msg']}") from None
    except re.error as error:
        raise DefinitionError(f"{where}: {error.pattern!r} is no pattern: {error}") from None
    return replace(known, **{name: getattr(checked, name) for name in changes})
