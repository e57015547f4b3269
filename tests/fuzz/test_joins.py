"""Joins in random graphs full of loops: what a visit is given is of one round, in whatever order nodes end."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perdure.graph import Graph, Node
from perdure.limits import GraphLimits
from tests.unit.courses import Course, work

from .depth import examples


class LoopedCourse(Course):
    """A course of a graph in which about every second node begins a loop, and nothing fails."""

    def made(self, size: int) -> Graph:
        names = [f"n{index}" for index in range(size)]
        forward = {
            (names[self.random.randrange(index)], names[index])
            for index in range(1, size)
            for _ in range(self.random.randint(1, 3))
        }
        back = {
            (names[self.random.randrange(size)], names[self.random.randrange(size)])
            for _ in range(self.random.randint(1, 1 + size // 2))
        } - forward
        edges = sorted(forward | back)
        self.random.shuffle(edges)
        return Graph(
            name="g",
            nodes={name: self.node(name, forward, edges) for name in names},
            edges=[self.edge(*pair) for pair in edges],
            entry=names[:1],
            limits=GraphLimits(max_node_executions=10 * size),
            concurrency=self.random.randint(1, 9),
        )

    def node(self, name: str, forward: set[tuple[str, str]], edges: Sequence[tuple[str, str]]) -> Node:
        before = sum(target == name for _, target in forward)
        looped = any(target == name for _, target in {*edges} - forward)
        join: Any = self.random.randint(1, max(1, before)) if looped else self.random.choice(["all", "any"])
        return Node(work, join=join, on_error="skip")


@examples(15)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 24))
def test_visits_are_given_one_round(seed: int, size: int) -> None:
    """No visit is given arrivals of two rounds.

    The oracle of the course works out rounds by itself, and fails where a node starts with anything else.
    """
    LoopedCourse(seed, size).run()
