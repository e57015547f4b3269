"""Messages of a client: their content and address as plain JSON, and the receipt for them."""

from typing import Any

from perdure.messages import Part
from perdure.wire.results import Question, Receipt

from .requests import check_attachments


def plain_content(message: str | list[Part]) -> Any:
    """Return the content as JSON values.

    Raises:
        InvalidRequest: an attachment can be read by no provider.

    """
    check_attachments(message)
    return message if isinstance(message, str) else [part.model_dump(mode="json") for part in message]


def address_of(call_id: str | Question | None, run_id: str | None) -> dict[str, str]:
    """Return the address of a message, as the fields that are set."""
    if isinstance(call_id, Question):
        run_id, call_id = run_id or call_id.run_id or None, call_id.call_id
    address = {"call_id": call_id, "run_id": run_id}
    return {name: value for name, value in address.items() if value is not None}


def receipt_of(answer: Any) -> Receipt:
    """Return the receipt. A worker of an earlier build gives only the number of unread messages."""
    return Receipt(unread=answer) if isinstance(answer, int) else Receipt.model_validate(answer)
