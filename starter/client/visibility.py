"""Text of Temporal visibility queries."""


def quote(value: str) -> str:
    """Return the value as a string literal of a visibility query."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
