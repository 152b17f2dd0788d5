"""Texts with the answers that a user sees: a file has one after the other, each with its answer.

A text ends at a line `----`, and its answer at a line `====`. If the answer has edits, the text after them
follows a line `after:`. `UPDATE_GOLDEN=1 pytest ...` writes the answers.
"""

import os

from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError, render

MODEL = "llama-7b"


def texts_of(path):
    """Return the texts of a file, without their answers."""
    parts = path.read_text(encoding="utf-8").split("\n====\n")
    return [part.split("\n----")[0] + "\n" for part in parts if part.strip()]


def answered(text, model=MODEL):
    """Return the problems of a text, with advice, and their places."""
    try:
        resolved = make_plan(text, model)
    except BishareError as error:
        return error.problems, error.where
    return resolved.problems, resolved.where


def edited(text, edits):
    """Return a text after the edits of its problems."""
    for edit in sorted({*edits}, key=lambda edit: -edit.span.start):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


def check_document(path):
    """Compare the answers to all texts of a file with those in it. Return texts and problems."""
    result = []
    written = []
    for text in texts_of(path):
        problems, where = answered(text)
        answer = "\n".join(render(problem, where) for problem in problems)
        edits = [edit for problem in problems for edit in problem.edits]
        after = f"\nafter:\n{edited(text, edits).rstrip()}" if edits else ""
        written.append(f"{text}----\n{answer}{after}\n====\n")
        result.append((text, problems))
    found = "".join(written)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8", newline="\n")
    assert found == path.read_text(encoding="utf-8")
    return result


def check_edits(text, problems, model=MODEL):
    """Check that a text has fewer errors after the edits of each of its problems."""
    errors = sum(problem.severity == "error" for problem in problems)
    for problem in problems:
        if problem.edits:
            after, _ = answered(edited(text, problem.edits), model)
            left = sum(other.severity == "error" for other in after)
            if problem.severity == "error":
                assert left < errors, problem
            else:
                assert left <= errors, problem
                assert len(after) < len(problems), problem
