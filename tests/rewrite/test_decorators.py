import functools
import inspect

import pytest

from bishare_dsl.rewrite.decorators import UnknownDecorator, rewrap


def renames(old, new):
    def decorate(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            if old in kwargs:
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


@renames("p", "q")
@renames("q", "r")
def original(x, r=1):
    """Says what it does."""
    return x + r


def generated(x, r=1):
    return x * r


def test_decorators_go_round_the_new_function():
    new = rewrap(original, generated)
    assert new(3, p=5) == 15
    assert original(3, p=5) == 8
    assert inspect.unwrap(new) is generated


def test_it_looks_like_the_old_one():
    new = rewrap(original, generated)
    assert inspect.signature(new) == inspect.signature(original)
    assert (new.__name__, new.__doc__) == ("original", "Says what it does.")


def test_a_decorator_without_a_cell_for_the_function_is_refused():
    @functools.wraps(original)
    def stranger(x):
        return x

    stranger.__wrapped__ = generated
    with pytest.raises(UnknownDecorator, match="stranger"):
        rewrap(stranger, generated)
