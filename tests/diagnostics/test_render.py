import pytest

from bishare_dsl.diagnostics import Problem, Source, SourceMap, Span, as_json, render

EVIL = "\x1b[2Jx\nerror[BS000]: forged\u202e\ud800"
SHOWN = r"\x1b[2Jx\nerror[BS000]: forged\u202e\ud800"


def test_what_comes_from_outside_adds_no_line_and_no_code_of_the_terminal():
    text = "use \x1b[2J\n"
    used = Source(EVIL, text, 10, Span(0, 1))
    where = SourceMap(Source(EVIL, "a\x1b[2J"), {}, (used,))
    problem = Problem("BS130", f"no `{EVIL}`", help=EVIL, span=Span(14, 15))
    drawn = render(problem, where)
    assert drawn.splitlines() == [
        f"error[BS130]: no `{SHOWN}`",
        f" --> {SHOWN}:1:5",
        "  |",
        "1 | use ·[2J",
        "  |     ^",
        f"  = note: used at {SHOWN}:1:1",
        f"  = help: {SHOWN}",
    ]
    assert as_json(problem, where)["file"] == EVIL


def test_a_place_without_a_text_is_escaped_too():
    problem = Problem("BS201", "no", loc=("shares", 0, "via", EVIL))
    assert render(problem) == rf"error[BS201]: no (at shares[0].via.{SHOWN})"


def test_letters_of_any_language_are_shown_as_they_are():
    assert render(Problem("BS201", "größe 大小")) == "error[BS201]: größe 大小"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_line_is_wider_than_is_asked(width):
    source = Source("mine.share", f"spec s\ntarget {', '.join(f'kind_{i}' for i in range(30))}\n")
    for start in (0, 9, 120, 200):
        problem = Problem(
            "BS301", "a long message " * 9, help="such as `this` " * 9, span=Span(start, start + 6)
        )
        lines = render(problem, SourceMap(source), width).splitlines()
        assert max(map(len, lines)) <= width
        assert " ".join(" ".join(lines).split()).count("a long message") == 9
        assert any("^" in line for line in lines)
