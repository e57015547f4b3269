"""The table of docs/providers.md about what models take: `python -m perdure.providers.capability_table`."""

import sys
from collections.abc import Iterable
from typing import Final

from perdure.model import ModelConfig

from .capabilities import Capabilities, capabilities_of

_SHOWN: Final = (
    ("anthropic", "claude", "all"),
    ("openai", "gpt-5", "gpt, o-series"),
    ("openai", "gpt-3.5", "gpt-3.5, o1-mini, o3-mini"),
    ("azure", "deployment", "all"),
    ("responses", "gpt-5", "all"),
    ("gemini", "gemini-2.5", "all"),
    ("openai", "model", "others at an address of yours"),
    ("vllm", "model", "all"),
    ("ollama", "model", "all"),
    ("(any other)", "model", "all"),
    ("(compatible)", "mistral", "mistral, ministral, magistral, ..."),
    ("(compatible)", "deepseek-chat", "deepseek"),
    ("(compatible)", "kimi", "kimi, glm"),
    ("(compatible)", "gpt-oss", "gpt-oss"),
    ("(compatible)", "gemini-3", "gemini"),
    ("bedrock", "anthropic.claude", "anthropic"),
    ("bedrock", "amazon.nova-pro", "amazon.nova"),
    ("bedrock", "amazon.nova-micro", "amazon.nova-micro"),
    ("bedrock", "meta.llama3-1", "meta.llama3-1, -3"),
    ("bedrock", "meta.llama4", "meta.llama3-2, meta.llama4"),
    ("bedrock", "meta.llama3-8b", "meta.llama2, meta.llama3"),
    ("bedrock", "mistral.mistral-large", "mistral"),
    ("bedrock", "mistral.mixtral", "mistral.mistral-7b, mistral.mixtral"),
    ("bedrock", "mistral.pixtral", "mistral.pixtral"),
    ("bedrock", "cohere.command-r", "cohere, ai21, qwen, openai.gpt-oss"),
    ("bedrock", "deepseek.v3", "deepseek.v3"),
    ("bedrock", "deepseek.r1", "deepseek.r1"),
    ("bedrock", "amazon.titan", "amazon.titan"),
    ("bedrock", "model", "others"),
)
"""Provider, a model, and the words for its family."""
_SHORT: Final = {
    "application/pdf": "PDF",
    "text/*": "text",
    "application/msword": "Office",
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/gif": "GIF",
    "image/webp": "WebP",
    "image/heic": "HEIC",
    "image/heif": "HEIF",
}
_HEAD: Final = (
    *("provider", "models", "tools", "forced", "ids of calls", "images", "documents", "files in results"),
    *("reasoning goes back", "caching marks"),
)


def capability_table() -> str:
    """Return the table in Markdown."""
    lines = [_line(_HEAD), _line("---" for _ in _HEAD)]
    for provider, model, family in _SHOWN:
        name = "vllm" if provider == "(compatible)" else provider
        lines.append(_line((provider, family, *_cells(capabilities_of(ModelConfig(name=f"{name}:{model}"))))))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(known: Capabilities) -> tuple[str, ...]:
    tools = "no" if not known.tools else f"at most {known.most_tools}" if known.most_tools else "yes"
    return (
        tools,
        _yes(known.tools and known.forced_tool),
        "nine letters" if known.call_id.endswith("{9}") else "any",
        _files(known.images, known.most_images, known.most_image_bytes),
        _files(known.documents, known.most_documents, known.most_document_bytes),
        _yes(known.files_in_results),
        {"signed": "signed", "returned": "as text", "none": "no"}[known.thinking],
        _yes(known.caching),
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _files(types: tuple[str, ...], most: int | None, most_bytes: int | None) -> str:
    named = [_SHORT[kind] for kind in types if kind in _SHORT]
    if not named:
        return "no"
    bounds = [f"{most}" if most else "", f"{most_bytes / 2**20:.3g} MiB" if most_bytes else ""]
    bound = " of ".join(bound for bound in bounds if bound)
    return ", ".join(named) + (f" (at most {bound})" if bound else "")


if __name__ == "__main__":
    sys.stdout.write(capability_table() + "\n")
