"""Six small tasks that anyone can judge: a word is asked, and a word is the answer."""

from __future__ import annotations

from typing import NamedTuple


class Pair(NamedTuple):
    """What is asked, and the one right answer."""

    word: str
    answer: str


PROMPTS = {
    "plural": "one {}, two",
    "past": "today I {}, yesterday I",
    "opposite": "not {} but",
    "capital": "from {}, so from",
    "young": "a {} and its young",
    "shout": "he said {}, she cried",
}
"""What is asked of a word, by task."""


def _pairs(text: str) -> list[Pair]:
    return [
        Pair(*item.split()) for item in text.strip().replace("\n", ",").split(",") if item.strip()
    ]


TASKS = {
    "plural": _pairs("""
city cities, box boxes, leaf leaves, fox foxes, baby babies, dish dishes, wolf wolves, lady ladies
bus buses, knife knives, story stories, glass glasses, man men, party parties, watch watches
shelf shelves, child children, berry berries, bench benches, thief thieves, fly flies, kiss kisses
woman women, puppy puppies, book books, tree trees, car cars, dog dogs, house houses, river rivers
apple apples, friend friends, country countries, copy copies, lily lilies, body bodies
cherry cherries, penny pennies, army armies, duty duties, brush brushes, class classes
dress dresses, match matches, church churches, tax taxes, wish wishes, beach beaches, life lives
wife wives, half halves, loaf loaves, calf calves, elf elves, self selves, scarf scarves, foot feet
tooth teeth, goose geese, mouse mice, person people, ox oxen, boy boys, key keys, day days, toy toys
"""),
    "past": _pairs("""
go went, see saw, eat ate, run ran, walk walked, play played, take took, write wrote, sing sang
swim swam, give gave, come came, look looked, call called, buy bought, bring brought, think thought
teach taught, jump jumped, open opened, speak spoke, break broke, drive drove, know knew, grow grew
fly flew, begin began, drink drank
"""),
    "opposite": _pairs("""
hot cold, big small, up down, fast slow, old new, day night, good bad, left right, open closed
happy sad, light dark, high low, wet dry, hard soft, full empty, early late, strong weak, rich poor
long short, young old, clean dirty, loud quiet, near far, first last, inside outside, true false
win lose, love hate
"""),
    "capital": _pairs("""
France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Germany Berlin, Russia Moscow, Egypt Cairo
Greece Athens, Austria Vienna, Portugal Lisbon, England London, Ireland Dublin, Norway Oslo
China Beijing, Cuba Havana, Kenya Nairobi, Poland Warsaw, Hungary Budapest, Finland Helsinki
Sweden Stockholm, Peru Lima, Chile Santiago, Canada Ottawa, Turkey Ankara
"""),
    "young": _pairs("""
dog puppy, cat kitten, cow calf, horse foal, sheep lamb, lion cub, bear cub, duck duckling
hen chick, goat kid, deer fawn, pig piglet, wolf cub, frog tadpole, swan cygnet, goose gosling
tiger cub, fox cub, kangaroo joey, eagle eaglet
"""),
    "shout": _pairs("""
yes YES, no NO, stop STOP, help HELP, fire FIRE, home HOME, love LOVE, time TIME, red RED
blue BLUE, dog DOG, sun SUN, one ONE, two TWO, go GO, run RUN, good GOOD, new NEW, life LIFE
work WORK, day DAY, top TOP, book BOOK, free FREE
"""),
}
