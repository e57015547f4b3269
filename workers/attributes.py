"""Registration of search attributes: a run that sets one which the server does not know is stuck."""

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


async def missing_search_attributes(client: Client) -> list[str]:
    """Return the names of our search attributes that the namespace does not have."""
    request = ListSearchAttributesRequest(namespace=client.namespace)
    registered = await client.operator_service.list_search_attributes(request)
    return [name for name in SEARCH_ATTRIBUTES if name not in registered.custom_attributes]


async def register_search_attributes(client: Client) -> None:
    """Register our search attributes that the namespace does not have.

    Raises:
        DefinitionError: the server refuses; the message has the command for an administrator, and the
            setting that switches search attributes off.

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
            return  # another worker, started at the same time, has registered them
        required = ", ".join(f"{name} ({kind})" for name, kind in SEARCH_ATTRIBUTES.items())
        raise DefinitionError(
            f"the search attributes cannot be registered ({error.message}); let an administrator create "
            f"{required} with `temporal operator search-attribute create`, one at a time, "
            "or set PERDURE_SEARCH_ATTRIBUTES=false"
        ) from error
