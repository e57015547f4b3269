"""Registration of search attributes: a run that sets one which the server does not know is stuck."""

from collections.abc import Mapping

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import DefinitionError
from perdure.wire.attributes import SEARCH_ATTRIBUTES

_TYPES = {
    "Keyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "Int": IndexedValueType.INDEXED_VALUE_TYPE_INT,
    "Double": IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE,
    "Datetime": IndexedValueType.INDEXED_VALUE_TYPE_DATETIME,
}
_NAMES: dict[int, str] = {
    **{value: name for name, value in _TYPES.items()},
    IndexedValueType.INDEXED_VALUE_TYPE_TEXT: "Text",
    IndexedValueType.INDEXED_VALUE_TYPE_BOOL: "Bool",
    IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST: "KeywordList",
}
"""Name of each type, as `temporal operator search-attribute create` takes it."""


async def missing_search_attributes(client: Client) -> list[str]:
    """Return the names of our search attributes that the namespace does not have.

    Raises:
        DefinitionError: the namespace has one of them with another type.

    """
    request = ListSearchAttributesRequest(namespace=client.namespace)
    registered = (await client.operator_service.list_search_attributes(request)).custom_attributes
    wrong = {
        name: registered[name]
        for name, kind in SEARCH_ATTRIBUTES.items()
        if name in registered and registered[name] != _TYPES[kind]
    }
    if wrong:
        raise DefinitionError(_explain_types(client.namespace, wrong))
    return [name for name in SEARCH_ATTRIBUTES if name not in registered]


def _explain_types(namespace: str, wrong: Mapping[str, int]) -> str:
    found = ", ".join(
        f"{name} is {_NAMES.get(kind, 'of another type')} and must be {SEARCH_ATTRIBUTES[name]}"
        for name, kind in sorted(wrong.items())
    )
    # The type of an attribute cannot be changed. Where somebody else uses it, it must stay.
    return (
        f"the namespace {namespace!r} has search attributes of other types: {found}. No run could set them. Use "
        "another namespace, or set PERDURE_SEARCH_ATTRIBUTES=false; if nobody uses them, an administrator can "
        "remove them with `temporal operator search-attribute remove`"
    )


async def register_search_attributes(client: Client) -> None:
    """Register our search attributes that the namespace does not have.

    Raises:
        DefinitionError: the server refuses, or has one with another type; the message says what an
            administrator can do, and names the setting that switches search attributes off.

    """
    try:
        missing = await missing_search_attributes(client)
        if missing:
            types = {name: _TYPES[SEARCH_ATTRIBUTES[name]] for name in missing}
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(namespace=client.namespace, search_attributes=types)
            )
    except RPCError as error:
        if error.status == RPCStatusCode.ALREADY_EXISTS:
            # Another worker or person, at the same time, has registered them: with which types?
            await missing_search_attributes(client)
            return
        required = ", ".join(f"{name} ({kind})" for name, kind in SEARCH_ATTRIBUTES.items())
        raise DefinitionError(
            f"the search attributes cannot be registered ({error.message}); let an administrator create "
            f"{required} with `temporal operator search-attribute create`, one at a time, "
            "or set PERDURE_SEARCH_ATTRIBUTES=false"
        ) from error
