"""Choice of the question that a person's line answers, where several wait. Pure."""

from collections.abc import Sequence

from perdure.shown import visible
from perdure.wire.results import Question

from .. import display


def label(question: Question) -> str:
    """Return the call of the question, with the path to the run that asks."""
    return display.short("/".join([*question.path, question.call_id]), 80)


def menu(questions: Sequence[Question]) -> str:
    """Return the questions as numbered lines."""
    lines = [
        f"{number:>3}  {label(question)}  {visible(question.text)}"
        for number, question in enumerate(questions, 1)
    ]
    return "\n".join([f"{len(questions)} questions wait; begin your answer with its number:", *lines])


def chosen(line: str, questions: Sequence[Question]) -> tuple[Question, str] | None:
    """Return the question that the line names by number or by call, and the answer; None if it names none.

    A single question needs no name.
    """
    if len(questions) == 1:
        return questions[0], line
    word, _, answer = line.strip().partition(" ")
    word = word.rstrip(".:)")
    named = [
        question
        for number, question in enumerate(questions, 1)
        if word in (str(number), question.call_id, f"{question.run_id}/{question.call_id}", label(question))
    ]
    return (named[0], answer.strip()) if len(named) == 1 and answer.strip() else None
