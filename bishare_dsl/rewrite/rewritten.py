"""Replace a module's forward by a graph, and restore it.

The module gets a generated subclass of its class, whose forward is the graph's code. So `isinstance`,
hooks, `torch.compile`, gradient checkpointing and other code that inspects the module work as usual.
`restore_forward` restores exactly the original class.

Modules with the same class and code share one generated class. A pickled module carries the source of its
forward, and regenerates the class when it is loaded.
"""

from __future__ import annotations

import copyreg
import hashlib
import importlib
import linecache
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from typing import Any, NamedTuple, Protocol, cast
from weakref import WeakValueDictionary

from torch import Tensor, compiler, fx, nn

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.rewrite import FORWARD_REPLACED
from bishare_dsl.models.hooks import FORWARDS, is_sharded_class, own_forward
from bishare_dsl.rewrite.decorators import rewrap

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A function that wraps a forward."""


@dataclass(frozen=True)
class GraphCode:
    """The Python code of one graph.

    Attributes:
        source: Python that defines `forward`.
        names: the functions and types in the source, which are pickled by reference.
        modules: the Python modules in the source, by the names used there.
        outermost: whether it replaces the decorators of a forward, too.
    """

    source: str
    names: Mapping[str, Any]
    modules: Mapping[str, str]
    outermost: bool = False

    @classmethod
    def of(cls, graph: fx.Graph) -> GraphCode:
        """Generate the code of a graph."""
        code = graph.python_code("self")
        globals_ = dict(code.globals)
        modules = {k: v.__name__ for k, v in globals_.items() if isinstance(v, types.ModuleType)}
        names = {k: v for k, v in globals_.items() if k not in modules}
        return cls(code.src.strip() + "\n", names, modules)

    def function(self, name: str = "forward") -> types.FunctionType:
        """Create a function from the code; tracebacks show `name` as the owner of the forward."""
        digest = hashlib.sha256(self.source.encode()).hexdigest()[:12]
        filename = f"<bishare {name} {digest}>"
        # With the source in linecache, tracebacks and debuggers show the generated code.
        linecache.cache[filename] = (
            len(self.source),
            None,
            self.source.splitlines(keepends=True),
            filename,
        )
        # No `__name__`: torch.compile would look for the globals in the module of that name.
        namespace = {
            **self.names,
            **{name: importlib.import_module(path) for name, path in self.modules.items()},
        }
        exec(_code(self.source, filename), namespace)
        return cast(types.FunctionType, namespace["forward"])


class Assembly(Protocol):
    """A description of how a region's factors are computed, such as the code of a graph."""

    @property
    def source(self) -> str: ...

    def function(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class RegionCode:
    """The code of a region's forward and of its assembly, shared by all equal regions.

    Attributes:
        forward: replaces the region's forward.
        assembly: computes the factors from the region's tensors, followed by the constants.
        constants: the tensors that transforms have created themselves.
    """

    forward: GraphCode
    assembly: Assembly
    constants: tuple[Tensor, ...] = ()


class Changes(NamedTuple):
    """The differences of a generated class from the class that it replaces.

    Attributes:
        code: of the forward; None for the original.
        wrap: wraps the forward.
        names: the parameters whose reads return tensors of the child ``bishare_whole``.
    """

    code: GraphCode | None = None
    wrap: Wrap | None = None
    names: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def _code(source: str, filename: str) -> types.CodeType:
    """Compile code once for all layers of a model, because this is the main cost of a new forward."""
    return compile(source, filename, "exec")


class RewrittenModule(nn.Module):
    """Base class of every generated class, in addition to the replaced class."""

    bishare_base: type[nn.Module]
    bishare_changes: Changes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "forward" in self.__dict__:
            check_forward(self)
        return super().__call__(*args, **kwargs)

    @property
    def bishare_self(self) -> nn.Module:
        """Return the module itself, which generated code can name only as an attribute."""
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if not (isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__):  # type: ignore[attr-defined]
            raise TypeError(
                f"{self.bishare_base.__name__} pickles in a way of its own: "
                "take the adapter out before copying or pickling the module"
            )
        return (_restore, (self.bishare_base, self.bishare_changes), *reduced[2:])


# A class lives as long as some module uses it.
_classes: WeakValueDictionary[Hashable, type[RewrittenModule]] = WeakValueDictionary()


def set_code(module: nn.Module, code: GraphCode) -> None:
    """Replace the forward of `module`, original or rewritten, by the code of a graph.

    The graph's placeholders are the parameters of the replaced forward. Its nodes may call the module's
    children (`call_module`), read its attributes (`get_attr`) and call importable functions.
    """
    change(module, code=code, wrap=None)


@contextmanager
def own_parameters(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules return their own parameters inside the block, where `Changes.names` replace some."""
    replaced = [(module, changes_of(module).names) for module in modules]
    for module, _ in replaced:
        change(module, names=())
    try:
        yield
    finally:
        for module, names in replaced:
            change(module, names=names)


def wrap_forward(module: nn.Module, wrap: Wrap) -> None:
    """Wrap the current forward of a module in `wrap`, once; `wrap` is pickled by its name."""
    if changes_of(module).wrap is not wrap:
        change(module, wrap=wrap)


def forward_of(module: nn.Module, code: GraphCode | None) -> Callable[..., Any]:
    """Return the forward of a module with the given code, or the original one without any."""
    base = base_class(type(module))
    return base.forward if code is None else _generated_class(base, Changes(code)).forward


def restore_forward(module: nn.Module) -> None:
    """Restore the original class and forward of `module`; do nothing without a graph."""
    change(module, code=None, wrap=None)


def changes_of(module: nn.Module) -> Changes:
    """Return how the class of a module differs from its original class."""
    return getattr(type(module), "bishare_changes", Changes())


def change(module: nn.Module, **changed: Any) -> None:
    """Generate and set the class of a module with some `Changes`; without any, the original class."""
    base = base_class(type(module))
    changes = changes_of(module)._replace(**changed)
    _swap(module, _generated_class(base, changes) if any(changes) else base)


def is_rewritten(module: nn.Module) -> bool:
    """Tell whether the forward of `module` is a graph."""
    return changes_of(module).code is not None


def base_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Find the class that a module of class `cls` has without a graph."""
    if not issubclass(cls, RewrittenModule):
        return cls
    if "bishare_base" in vars(cls):
        return cls.bishare_base
    if not is_sharded_class(cls):
        raise TypeError(f"{cls.__name__} was subclassed after a graph was installed in it")
    return _without_graph(cls)


def _without_graph(cls: type[nn.Module]) -> type[nn.Module]:
    """Replace the generated class in a class made by `fully_shard` by its original."""
    sharded, generated = cls.__bases__
    # Omit the forward: transformers has set it, if present, as a wrapper of the generated one.
    members = {name: vars(cls)[name] for name in ("__module__", "__deepcopy__")}
    return type(cls.__name__, (sharded, base_class(generated)), members)


def has_own_forward(module: nn.Module) -> bool:
    """Tell whether `module` runs a forward other than its class's.

    Hooks of accelerate do not count: they call the forward that they wrap. Removing them leaves the
    class's own forward, bound, on the instance.
    """
    forward = own_forward(module)
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


@compiler.assume_constant_result  # type: ignore[untyped-decorator]
def check_forward(module: RewrittenModule) -> None:
    """Check that a forward set on a rewritten module calls the rewritten one, as wrappers do.

    `torch.compile` runs it while it traces.

    Raises:
        AdapterError: it would leave the adapter out (BS407).
    """
    # accelerate's hook reads the old forward (`hooks.FORWARDS`) from the module; a patch over it does not.
    ours = type(module).forward
    waiting = [vars(module)["forward"]]
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        if function is ours:
            return
        if id(function) in seen or isinstance(function, nn.Module):
            continue
        seen.add(id(function))
        waiting += filter(callable, _referred_to(function, module))
    if module.bishare_changes.code or module.bishare_changes.wrap:
        raise AdapterError(FORWARD_REPLACED(kind=type(module).__name__))


def _referred_to(function: Any, module: nn.Module) -> Iterator[Any]:
    """Yield what a function may call: what it wraps, closes over, has as a default, or reads by name."""
    for name in ("__func__", "__wrapped__"):
        yield getattr(function, name, None)
    if isinstance(function, partial):
        yield from (function.func, *function.args, *function.keywords.values())
    elif isinstance(function, types.FunctionType):
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # It is empty.
                yield cell.cell_contents
        yield from function.__defaults__ or ()
        yield from (function.__kwdefaults__ or {}).values()
        names = {*function.__code__.co_names}
        yield from (vars(module)[name] for name in names & vars(module).keys())
        values = (function.__globals__.get(name) for name in names)  # In a notebook.
        yield from (value for value in values if isinstance(value, types.MethodType))
    else:
        owner = function.__self__ if isinstance(function, types.MethodType) else function
        yield from () if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {}).values()


def _swap(module: nn.Module, cls: type[nn.Module]) -> None:
    old = type(module)
    module.__class__ = cls
    # A forward that accelerate has bound to the instance would still run the old class's code.
    for name in FORWARDS:
        bound = module.__dict__.get(name)
        if isinstance(bound, types.MethodType) and bound.__func__ is old.forward:
            module.__dict__[name] = types.MethodType(cls.forward, module)


def _generated_class(base: type[nn.Module], changes: Changes) -> type[RewrittenModule]:
    code, wrap, names = changes
    parts = code and (code.source, *code.names.items(), *code.modules.items())
    key = (base, base.forward, parts, wrap, names)
    cls = _classes.get(key)
    if cls is None:
        forward: Callable[..., Any] = base.forward
        if code is not None:
            function = code.function(base.__qualname__)
            put = wraps(base.forward) if code.outermost else partial(rewrap, base.forward)
            forward = put(function)
        members = {
            "forward": wrap(forward) if wrap else forward,
            "bishare_base": base,
            "bishare_changes": changes,
            **{name: _read_whole(name) for name in names},
            # Keep the name, because `_no_split_modules` and similar settings use it.
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
        }
        cls = _classes[key] = type(base.__name__, (RewrittenModule, base), members)
    return cls


def _read_whole(name: str) -> property:
    """Create a property that returns the replacement of a parameter."""

    def read(self: Any) -> Any:
        return self.bishare_whole(name, self._parameters[name])

    return property(read)


def _restore(base: type[nn.Module], changes: Changes) -> RewrittenModule:
    """Create an empty module of the generated class, to be filled by unpickling or copying."""
    cls = _generated_class(base, changes)
    return cls.__new__(cls)
