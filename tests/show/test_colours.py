from itertools import product

from bishare_dsl.show.colours import PALETTE, colours


def distance(one, other):
    """Of two colours, in sRGB; black and white are 441 apart."""
    parts = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (one, other)]
    return sum((a - b) ** 2 for a, b in zip(*parts, strict=True)) ** 0.5


def test_colours_can_be_distinguished_on_white_and_on_black():
    assert min(distance(a, b) for a, b in product(PALETTE, PALETTE) if a != b) > 45
    for colour in PALETTE:
        assert distance(colour, "#ffffff") > 90
        assert distance(colour, "#0d1117") > 130


def test_few_pools_have_different_colours_and_neighbours_always():
    assert len({*colours([(0, 0)] * 10)}) == 10
    places = [(row, column) for row in range(7) for column in range(32)]
    chosen = dict(zip(places, colours(places), strict=True))
    for (row, column), colour in chosen.items():
        assert colour not in (chosen.get((row + 1, column)), chosen.get((row, column + 1)))
