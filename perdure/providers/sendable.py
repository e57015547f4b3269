"""Requests that a provider takes, whatever a model or a user has put into the conversation. Pure.

Rules
1. Nothing is lost without a word: what cannot be sent stands there in words, or in another form.
2. What is made of a message depends on the message, the model and few flags (`Flags`), so it can be kept beside the
   message. Only the order of messages, and the ends of the conversation, depend on more.
3. A request that needs no change keeps its very messages.
4. The transcript stays as it is: another model of the chain may take what this one does not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, TypeVar, cast

from perdure.media import in_words
from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    ResultPart,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)
from perdure.model import ModelConfig, ModelRequest, ToolDefinition, canonical_json
from perdure.texts import fix_surrogates

from .capabilities import Capabilities
from .conversation import EMPTY_TEXT
from .files import hidden_files, sendable_file
from .schemas import sendable_schema
from .turns import order_turns

V = TypeVar("V")

GO_ON: Final = "Go on."
"""Words of the user where a provider wants to hear the user last."""
LEAST_THINKING: Final = 1024
"""Smallest budget for thinking that providers take, in tokens."""
_KEPT: Final = "sendable"
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_SHORT_ID: Final = 9
_MOST_NAME: Final = 64
_OTHER_CHARACTERS: Final = re.compile(r"[^a-zA-Z0-9_-]")


@dataclass(frozen=True)
class Flags:
    """Facts about the rest of the conversation on which the form of a message depends."""

    left_out: frozenset[str] = frozenset()
    """Ids of calls of the provider's own tools, and of their results, that the message must not hold."""
    hidden_images: int = 0
    """Number of its images, from the first, that stand in words because newer ones fill the request."""
    hidden_documents: int = 0
    is_last: bool = False
    """True for the end of the conversation."""


_NO_FLAGS: Final = Flags()


def make_sendable(request: ModelRequest, capabilities: Capabilities) -> ModelRequest:
    """Return the request as the model takes it; every adapter begins with it."""
    config = request.config
    ordered, left_out = order_turns(request.messages, config.provider)
    flags = _flags(ordered, left_out, capabilities, request.blobs)
    messages: list[Message] = []
    for message, flag in zip(ordered, flags, strict=True):
        messages += _kept_form(message, config, capabilities, request.blobs, flag)
    messages = _with_ends(messages, capabilities)
    instructions = clean_text(request.instructions)
    if instructions.strip() and not capabilities.system_prompt:
        messages[0] = _with_instructions(messages[0], instructions)
        instructions = ""
    thinking = _thinking(request, messages, capabilities)
    tools = tuple(sendable_tool(tool, capabilities) for tool in request.tools) if capabilities.tools else ()
    is_forced = request.tool_choice == "required" and capabilities.forced_tool
    return replace(
        request,
        config=config if thinking == config.thinking else config.model_copy(update={"thinking": thinking}),
        instructions=instructions,
        messages=tuple(messages),
        tools=tools,
        tool_choice="auto" if request.tool_choice == "required" and not is_forced else request.tool_choice,
    )


# -- a message


def _kept_form(
    message: Message,
    config: ModelConfig,
    capabilities: Capabilities,
    blobs: Mapping[str, bytes],
    flags: Flags,
) -> tuple[Message, ...]:
    """Return what `sendable_message` makes of the message; made once, and kept on it."""
    if message.has_attachments:
        return sendable_message(message, config, capabilities, blobs, flags)
    key = (config.name, capabilities, flags)
    found: tuple[Message, ...] | None = message.cache.find(_KEPT, key)
    if found is None:
        found = sendable_message(message, config, capabilities, blobs, flags)
        if len(found) == 1 and found[0] is message:
            # Empty, for a message that needs no other form: it must not keep itself.
            message.cache.add(_KEPT, key, (), 0)
        else:
            message.cache.add_copies(_KEPT, key, found)
    return found or (message,)


def sendable_message(
    message: Message,
    config: ModelConfig,
    capabilities: Capabilities,
    blobs: Mapping[str, bytes],
    flags: Flags = _NO_FLAGS,
) -> tuple[Message, ...]:
    """Return the messages to send for one message of the transcript; the same object where nothing changes."""
    form = _Form(message=message, config=config, capabilities=capabilities, blobs=blobs, flags=flags)
    parts = [made for part in message.parts for made in form.make(part)]
    if flags.is_last and message.role == "assistant" and parts and isinstance(parts[-1], Text):
        # A conversation that the assistant ends must not end in blanks.
        parts[-1] = _with_fields(parts[-1], text=parts[-1].text.rstrip())
    if message.role != "tool":
        return (_with_parts(message, parts),)
    results: list[Part] = [part for part in parts if isinstance(part, ToolResult)]
    remaining: list[Part] = [part for part in parts if not isinstance(part, ToolResult)]
    if not remaining:
        return (_with_parts(message, parts),)
    behind = Message(role="user", parts=remaining)
    return (_with_parts(message, results), behind) if results else (behind,)


def _with_parts(message: Message, parts: list[Part]) -> Message:
    if len(parts) == len(message.parts) and all(a is b for a, b in zip(parts, message.parts, strict=True)):
        return message
    return message.model_copy(update={"parts": parts})


def _with_fields(part: V, **fields: Any) -> V:
    """Return the part with these fields; the same object if it has them already."""
    new = {name: value for name, value in fields.items() if getattr(part, name) != value}
    return cast("V", cast("Any", part).model_copy(update=new)) if new else part


@dataclass(kw_only=True)
class _Form:
    """The form of one message's parts for a model."""

    message: Message
    config: ModelConfig
    capabilities: Capabilities
    blobs: Mapping[str, bytes]
    flags: Flags
    images: int = 0
    documents: int = 0
    calls: int = 0

    @property
    def same_model(self) -> bool:
        return self.message.meta is None or self.message.meta.model == self.config.name

    def make(self, part: Part) -> list[Part]:
        """Return the parts to send for a part."""
        match part:
            case Text():
                # Providers refuse blank text, and some models produce it.
                return [_with_fields(part, text=clean_text(part.text))] if part.text.strip() else []
            case Thinking():
                return [part] if self._returns(part) else []
            case Opaque():
                return [part] if part.provider == self.config.provider and not self._leaves_out(part) else []
            case Image() | Document():
                return [self._file(part)]
            case ToolCall():
                return [self._call(part)]
            case ToolResult():
                return self._result(part)

    def _returns(self, thought: Thinking) -> bool:
        match self.capabilities.thinking:
            case "signed":
                # Signatures are bound to the model, and a thought without one was cut off before its end.
                return self.same_model and bool(thought.signature or thought.redacted)
            case "returned":
                return self.same_model and bool(thought.text.strip())
            case "none":
                return False

    def _leaves_out(self, block: Opaque) -> bool:
        names = (block.data.get("id"), block.data.get("tool_use_id"))
        return any(name in self.flags.left_out for name in names if isinstance(name, str))

    def _file(self, part: Image | Document) -> Image | Document | Text:
        if isinstance(part, Image):
            self.images += 1
            hidden = self.images <= self.flags.hidden_images
        else:
            self.documents += 1
            hidden = self.documents <= self.flags.hidden_documents
        if hidden:
            return Text(text=in_words(part, "newer ones leave no room for it"))
        return sendable_file(part, self.blobs, self.capabilities, self.config.provider)

    def _call(self, call: ToolCall) -> ToolCall | Text:
        self.calls += 1
        arguments = clean_value(call.arguments)
        if not self.capabilities.tools:
            shown = canonical_json(arguments).decode()
            return Text(text=f"(called the tool {call.name!r} with {shown})")
        extra = call.extra if self.same_model else {}
        if self.calls == 1 and not extra:
            # A provider that demands a signature has a stand-in for the first call of another model, or of a server
            # that did not send one.
            extra = self.capabilities.call_signature or {}
        return _with_fields(
            call,
            id=sendable_id(call.id, self.capabilities),
            name=sendable_name(call.name, self.capabilities),
            arguments=arguments,
            extra=extra,
        )

    def _result(self, result: ToolResult) -> list[Part]:
        content: list[ResultPart] = []
        for piece in result.content:
            if isinstance(piece, Text):
                content += [_with_fields(piece, text=clean_text(piece.text))] if piece.text.strip() else []
            else:
                content.append(self._file(piece))
        texts: list[ResultPart] = [piece for piece in content if isinstance(piece, Text)]
        files = [piece for piece in content if not isinstance(piece, Text)]
        call_id = sendable_id(result.call_id, self.capabilities)
        name = sendable_name(result.name, self.capabilities)
        if not self.capabilities.tools:
            text = "\n".join(piece.text for piece in content if isinstance(piece, Text)) or EMPTY_TEXT
            return [Text(text=f"(result of the tool {result.name!r}: {text})"), *files]
        behind: list[Part] = []
        if files and not self.capabilities.files_in_results:
            # The line before the files says whose they are.
            behind = [Text(text=f"Attached to the result of {name} ({call_id}):"), *files]
            content = texts
        if _same(content, result.content):
            content = result.content
        return [_with_fields(result, call_id=call_id, name=name, content=content), *behind]


def _same(first: Sequence[object], second: Sequence[object]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


# -- names, ids and texts


def sendable_name(name: str, capabilities: Capabilities) -> str:
    """Return the name of a tool as the provider takes it: there may be no such tool."""
    if re.fullmatch(capabilities.tool_name, name):
        return name
    plain = _OTHER_CHARACTERS.sub("_", name)
    if not plain or not (plain[0].isalpha() or plain[0] == "_"):
        plain = f"tool_{plain}"
    if len(plain) > _MOST_NAME:
        digest = sha256(name.encode(errors="replace")).hexdigest()[:8]
        plain = f"{plain[: _MOST_NAME - 9]}_{digest}"
    return plain


def sendable_id(call_id: str, capabilities: Capabilities) -> str:
    """Return the id of a call as the provider takes it; a call and its result get the same."""
    if re.fullmatch(capabilities.call_id, call_id):
        return call_id
    number = int.from_bytes(sha256(call_id.encode(errors="replace")).digest()[:8])
    letters: list[str] = []
    for _ in range(_SHORT_ID):
        number, at = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[at])
    return "".join(letters)


def clean_text(text: str) -> str:
    """Return the text with what no request can hold replaced: halves of characters, and zero bytes."""
    if "\0" in text:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return fix_surrogates(text)
    return text


def clean_value(value: V) -> V:
    """Return a JSON value with each text in it clean; the same object if all are."""
    if isinstance(value, str):
        return cast("V", clean_text(value))
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        fields = {clean_text(key): clean_value(item) for key, item in named.items()}
        same = all(a is b for a, b in zip(fields, named, strict=False)) and _same(
            list(fields.values()), list(named.values())
        )
        return cast("V", named if same else fields)
    if isinstance(value, list):
        listed = cast("list[Any]", value)
        items = [clean_value(item) for item in listed]
        return cast("V", listed if _same(items, listed) else items)
    return value


def sendable_tool(tool: ToolDefinition, capabilities: Capabilities) -> ToolDefinition:
    """Return the definition of a tool as the provider takes it."""
    schema = sendable_schema(tool.input_schema, capabilities)
    description = clean_text(tool.description)
    if schema is tool.input_schema and description == tool.description:
        return tool
    return tool.model_copy(update={"input_schema": schema, "description": description})


# -- the conversation


def _flags(
    messages: Sequence[Message],
    left_out: frozenset[str],
    capabilities: Capabilities,
    blobs: Mapping[str, bytes],
) -> list[Flags]:
    """Return the flags of each message."""
    hidden = hidden_files(messages, capabilities, blobs)
    ends_open = bool(messages) and messages[-1].role == "assistant"
    if not (left_out or hidden or ends_open):
        return [_NO_FLAGS] * len(messages)
    opaque = {at for at, message in enumerate(messages) if message.has_opaque} if left_out else set[int]()
    last = len(messages) - 1
    flags = [_NO_FLAGS] * len(messages)
    for at in {*hidden, *opaque, last} if ends_open else {*hidden, *opaque}:
        images, documents = hidden.get(at, (0, 0))
        flags[at] = Flags(
            left_out=left_out if at in opaque else frozenset(),
            hidden_images=images,
            hidden_documents=documents,
            is_last=ends_open and at == last,
        )
    return flags


_FILLER: Final = Message(role="assistant", parts=[Text(text=EMPTY_TEXT)])
_BEGINNING: Final = Message(role="user", parts=[Text(text=EMPTY_TEXT)])
_CONTINUATION: Final = Message(role="user", parts=[Text(text=GO_ON)])


def _with_ends(messages: list[Message], capabilities: Capabilities) -> list[Message]:
    """Return the conversation as providers want it: from a user's message to one of a user or a tool."""
    spaced: list[Message] = []
    for message in messages:
        is_behind_results = message.role == "user" and bool(spaced) and spaced[-1].role == "tool"
        if is_behind_results and not capabilities.text_beside_results:
            spaced.append(_FILLER)
        spaced.append(message)
    if not spaced or spaced[0].role != "user":
        spaced.insert(0, _BEGINNING)
    last = spaced[-1]
    if last.role == "assistant" and not (capabilities.paused_turns and _is_paused(last)):
        spaced.append(_CONTINUATION)
    return spaced


def _is_paused(message: Message) -> bool:
    is_own = any(isinstance(part, Opaque) for part in message.parts)
    return is_own and (message.meta is None or message.meta.stop == "pause_turn")


def _with_instructions(message: Message, instructions: str) -> Message:
    return message.model_copy(update={"parts": [Text(text=instructions), *message.parts]})


def _thinking(request: ModelRequest, messages: Sequence[Message], capabilities: Capabilities) -> Any:
    """Return the setting of thinking that the provider takes for this request."""
    wanted = request.config.thinking
    if not isinstance(wanted, int):
        return wanted
    # A budget of the run may leave less than the reply's usual length, and thinking is part of it.
    budget = min(wanted, request.max_tokens - 1)
    if budget < LEAST_THINKING:
        return "off"
    if capabilities.thought_begins_turn and not _may_think(messages):
        return "off"
    return budget


def _may_think(messages: Sequence[Message]) -> bool:
    """Check whether a model that thinks may go on with the turn: it must have begun with a thought of its own."""
    at = len(messages) - 1
    while at >= 0 and messages[at].role == "user":
        at -= 1
    if at < 0 or (at < len(messages) - 1 and messages[at].role == "assistant"):
        return True
    while at >= 0 and messages[at].role != "assistant":
        at -= 1
    if at < 0:
        return True
    while at > 0 and messages[at - 1].role == "assistant":
        at -= 1
    parts = messages[at].parts
    return bool(parts) and isinstance(parts[0], Thinking)
