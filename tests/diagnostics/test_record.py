from dataclasses import asdict, field, replace

import pytest

from bishare_dsl.diagnostics.record import Record


class Point(Record):
    x: int
    y: tuple[int, ...] = ()
    tags: list[str] = field(default_factory=list)


class Pixel(Point):
    colour: str = "red"


class Node(Record, frozen=False, eq=False):
    name: str


def test_a_record_does_what_a_dataclass_does():
    point = Point(1, y=(2,))
    assert point == Point(1, (2,)) != Point(1)
    assert repr(point) == "Point(x=1, y=(2,), tags=[])"
    assert asdict(replace(point, x=3)) == {"x": 3, "y": (2,), "tags": []}
    assert Pixel(1).colour == "red"
    assert Point(1) != Pixel(1, colour="red") != 1
    with pytest.raises(TypeError):
        Point()
    with pytest.raises(TypeError, match="unhashable"):  # As a dataclass with a list.
        hash(point)


def test_a_record_without_equality_equals_itself_alone():
    node = Node("a")
    assert node == node != Node("a")
    assert len({node, node, Node("a")}) == 2
