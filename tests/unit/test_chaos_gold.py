"""Gold calls become JSON arguments, function documents JSON schemas."""

import json

import pytest

from proofs.chaos.gold import Call, fits, json_schema, parse, widened

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
def test_a_call_has_the_arguments_that_python_would_give_it(expression: str, call: Call) -> None:
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
def test_what_is_no_plain_call_of_a_known_function_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(expression, PARAMETERS)


def test_integers_and_floats_stay_apart_on_their_way_through_json() -> None:
    call = parse("mv(1, 1.0)", PARAMETERS)
    there_and_back = json.loads(json.dumps(call.arguments))
    assert [type(value) for value in there_and_back.values()] == [int, float]


def test_a_document_becomes_a_schema_in_the_words_of_json_schema() -> None:
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


def test_a_gold_call_that_its_own_document_rules_out_widens_it() -> None:
    schema = json_schema({"type": "dict", "properties": {"ticket_id": {"type": "integer"}}})
    wider = widened(schema, {"ticket_id": "ticket_001"})
    assert wider["properties"]["ticket_id"] == {"type": ["integer", "string"]}
    assert fits("ticket_001", wider["properties"]["ticket_id"])
    assert not fits(True, wider["properties"]["ticket_id"])
    assert schema["properties"]["ticket_id"] == {"type": "integer"}
