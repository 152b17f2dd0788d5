from itertools import product

from bishare_dsl.show.colours import colours


def distance(one, other):
    """Of two colours, in sRGB; black and white are 441 apart."""
    parts = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (one, other)]
    return sum((a - b) ** 2 for a, b in zip(*parts, strict=True)) ** 0.5


def test_few_pools_are_told_apart_wherever_they_are():
    found = colours([(0, 0)] * 10)
    assert min(distance(a, b) for a, b in product(found, found) if a != b) > 45
    assert len(set(found)) == 10


def test_what_is_a_module_s_own_has_one_colour():
    assert len({*colours([(0, i) for i in range(20)], alone=True)}) == 1


def test_they_can_be_seen_on_white_and_on_black():
    found = [*colours([(0, 0)] * 10), *colours([(0, i) for i in range(100)])]
    for colour in found:
        assert distance(colour, "#ffffff") > 90
        assert distance(colour, "#0d1117") > 130
