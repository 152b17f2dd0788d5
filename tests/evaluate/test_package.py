import pkgutil

from bishare_dsl import evaluate as package


def test_names_are_no_modules():
    """A module that is imported takes its name in the package, and would hide what else has it."""
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
    assert all(callable(getattr(package, name)) for name in package.__all__)
