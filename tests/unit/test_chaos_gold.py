"""Gold calls become JSON arguments, function documents JSON schemas."""

import json

import pytest

from proofs.chaos.gold import Call, fits, json_schema, parse, widen

PARAMETERS = {"mv": ["source", "destination"], "sort": ["file_name"], "ls": []}


@pytest.mark.parametrize(
    ("expression", "call"),
    [
        ("mv(source='a.txt', destination='b')", Call("mv", {"source": "a.txt", "destination": "b"})),
        ("mv('a.txt',destination='b')", Call("mv", {"source": "a.txt", "destination": "b"})),
        ("sort('it\\'s (here).txt')", Call("sort", {"file_name": "it's (here).txt"})),
        (
            "sort(file_name=[1, 2.5, True, None, {'a': -1}])",
            Call("sort", {"file_name": [1, 2.5, True, None, {"a": -1}]}),
        ),
        (" ls() ", Call("ls", {})),
    ],
)
def test_arguments_are_bound_like_in_python(expression: str, call: Call) -> None:
    """A parsed call has the arguments that Python would bind."""
    assert parse(expression, PARAMETERS) == call


@pytest.mark.parametrize(
    "expression",
    [
        "mv(",
        "mv",
        "rm('a')",
        "os.remove('a')",
        "ls(1)",
        "mv('a', source='b')",
        "sort(open('x'))",
        "sort(**{})",
    ],
)
def test_unknown_expression_is_rejected(expression: str) -> None:
    """Only a plain call of a known function with literal arguments is accepted."""
    with pytest.raises(ValueError, match=r"\S"):
        parse(expression, PARAMETERS)


def test_integers_and_floats_survive_json() -> None:
    """Integers and floats keep their types through JSON."""
    call = parse("mv(1, 1.0)", PARAMETERS)
    restored = json.loads(json.dumps(call.arguments))
    assert [type(value) for value in restored.values()] == [int, float]


def test_document_becomes_json_schema() -> None:
    """A function document is translated into the keywords of JSON schema."""
    document = {
        "type": "dict",
        "properties": {
            "price": {"type": "float", "description": "What it costs.", "default": "None"},
            "pair": {"type": "tuple", "items": {"type": "any"}},
            "side": {"type": "string", "enum": ["buy", "sell"]},
        },
        "required": ["price"],
    }
    assert json_schema(document) == {
        "type": "object",
        "properties": {
            "price": {"type": "number", "description": "What it costs."},
            "pair": {"type": "array", "items": {}},
            "side": {"type": "string", "enum": ["buy", "sell"]},
        },
        "required": ["price"],
    }


def test_gold_call_widens_its_schema() -> None:
    """A gold call that its own document rules out widens the type, on a copy."""
    schema = json_schema({"type": "dict", "properties": {"ticket_id": {"type": "integer"}}})
    wider = widen(schema, {"ticket_id": "ticket_001"})
    assert wider["properties"]["ticket_id"] == {"type": ["integer", "string"]}
    assert fits("ticket_001", wider["properties"]["ticket_id"])
    assert not fits(True, wider["properties"]["ticket_id"])
    assert schema["properties"]["ticket_id"] == {"type": "integer"}
