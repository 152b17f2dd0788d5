"""Trace the forward of one parent module into an fx graph.

fx's own tracer cannot follow an attention of transformers: it meets `*x.shape[:-1]`, `**kwargs`, a cache
that may be None and a table of attention functions. `RegionTracer` follows exactly one forward and makes
every callee a leaf. Child modules become `call_module` nodes, and module-level functions become calls of
`leaves.call_global`.

The forward runs on a *view* of the module: an instance of a temporary subclass whose children, parameters
and configuration are stand-ins that record. It patches nothing in torch or transformers, so tracing is
safe while other threads run. Code that tracing cannot see is rejected: `isinstance` of a traced value, a
look inside `**kwargs`, an attribute that the forward sets.

A trace follows one variant of `is None` and `if self.training`; `capture` traces several variants.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.fx.graph import inplace_methods
from torch.fx.proxy import GraphAppendingTracer, TraceError

from bishare_dsl.models.hooks import FORWARDS
from bishare_dsl.rewrite import leaves
from bishare_dsl.rewrite.decorators import UnknownDecorator, rewrap
from bishare_dsl.rewrite.rewritten import base_class

# Hidden states are (batch, tokens, width) in every decoder; `leaves.shape_of_rank` checks this at
# run time.
HIDDEN_RANK = 3
IMPLEMENTATION = "_attn_implementation"
# The attention implementation in the configuration, as an attribute path in the forward.
_IMPLEMENTATION_PATH = f"config.{IMPLEMENTATION}"
_TAKES_OPAQUE_KWARGS = {leaves.call_global, leaves.call_child, leaves.attend}
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
_LITERALS = (bool, int, float, str, types.NoneType)
# Functions of torch that depend on its state while tracing; a graph must not freeze their results.
_STATEFUL = {
    "compiler", "get_autocast_dtype", "get_default_dtype", "is_autocast_enabled",
    "is_grad_enabled", "is_inference_mode_enabled", "jit", "_dynamo", "cuda", "distributed",
}  # fmt: skip


class UntraceableRegion(Exception):
    """A parent module's forward cannot be converted to a graph; `reason` explains why, in a clause.

    ``bypassed`` is the path of a target that it never calls, though it reads its tensors.
    """

    def __init__(self, reason: str, bypassed: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.bypassed = bypassed


@dataclass(frozen=True)
class Variant:
    """A variant of a forward: the conditions under which it is traced.

    Attributes:
        absent: the arguments that are None.
        training: the value of `self.training`.
    """

    absent: frozenset[str] = frozenset()
    training: bool = False


def forward_function(module: nn.Module) -> types.FunctionType:
    """Find the innermost function of the forward of `module`'s class, under its decorators."""
    function = inspect.unwrap(base_class(type(module)).forward)
    if not isinstance(function, types.FunctionType):
        raise UntraceableRegion("its forward is not a Python function")
    return function


def check_decorators(module: nn.Module) -> None:
    """Check that the decorators of `module`'s forward can be applied to another function.

    Raises:
        UntraceableRegion: they cannot, or the forward is not a Python function.
    """
    try:
        rewrap(base_class(type(module)).forward, forward_function(module))
    except UnknownDecorator as error:
        raise UntraceableRegion(f"its decorator cannot be copied: {error}") from error


class RegionProxy(fx.Proxy):
    """A traced value. The shape of hidden states is a tuple, because their rank is known."""

    tracer: RegionTracer

    def __getattr__(self, name: str) -> Any:
        if name == "shape" and self.node is self.tracer.hidden:
            args = (self, HIDDEN_RANK)
            shape = self.tracer.create_proxy("call_function", leaves.shape_of_rank, args, {})
            return tuple(shape[axis] for axis in range(HIDDEN_RANK))  # type: ignore[index]
        return super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        # A value does not know its length, but `a, b = value` encodes it in the caller's
        # instruction. fx reads it too, but disassembles the whole caller, which is a third of a
        # trace. (For over 255 names the argument is the last byte, so unpacking fails with an
        # error.)
        caller = sys._getframe(1)
        code = caller.f_code.co_code
        offset = caller.f_lasti
        if code[offset] == dis.opmap["UNPACK_SEQUENCE"]:
            return (self[i] for i in range(code[offset + 1]))  # type: ignore[index]
        return self.tracer.iter(self)


def _augment(name: str) -> Callable[[RegionProxy, Any], Any]:
    def augment(value: RegionProxy, other: Any) -> Any:
        args = (name, value, other)
        return value.tracer.create_proxy("call_function", leaves.augment, args, {})

    return augment


# fx would replace `x += y` by `x = x + y`, which other references to x would not see.
for _name in inplace_methods:
    setattr(RegionProxy, f"__{_name}__", _augment(_name))


class KwargsProxy(fx.Proxy):
    """A forward's `**kwargs`: it can be passed on as a whole, but not inspected."""

    def keys(self) -> Any:
        return [leaves.OPAQUE_KWARGS]

    def __getitem__(self, key: str) -> KwargsProxy:
        return self if key == leaves.OPAQUE_KWARGS else self._look()

    def _look(self, *_: object) -> NoReturn:
        _refuse("it looks inside **kwargs")

    __getattr__ = __contains__ = __iter__ = _look


class View:
    """A stand-in for a part of the module, with the class of the original."""

    def __init__(self, tracer: RegionTracer, real: Any) -> None:
        self._tracer = tracer
        self._real = real

    @property
    def __class__(self) -> type:  # so that isinstance(self.q_proj, nn.Linear) is true
        return type(self._real)

    @__class__.setter
    def __class__(self, value: type) -> None:
        _refuse("it changes the class of what it has")


class ChildView(View):
    """A child module: calls and tensors become nodes; other attributes are unchanged."""

    def __init__(self, tracer: RegionTracer, path: str, module: nn.Module) -> None:
        super().__init__(tracer, module)
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name == "training":
            return self._tracer.variant.training
        value = getattr(self._real, name)
        path = f"{self._path}.{name}"
        if isinstance(value, nn.Module):
            return ChildView(self._tracer, path, value)
        if isinstance(value, torch.Tensor):
            return self._tracer.attribute(path)
        if callable(value):
            _refuse(f"it calls {path}, a method of a child module")
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if leaves.OPAQUE_KWARGS in kwargs:
            return self._tracer.create_proxy(
                "call_function", leaves.call_child, (self, *args), kwargs
            )
        return self._tracer.create_proxy("call_module", self._path, args, kwargs)


class ConfigView(View):
    """A configuration whose attention implementation the graph reads at run time."""

    def __getattr__(self, name: str) -> Any:
        return Implementation() if name == IMPLEMENTATION else getattr(self._real, name)


class Implementation:
    """A stand-in for the name of any attention implementation; it can be passed on, but not inspected.

    A traced forward therefore does not depend on the implementation.
    """

    def _look(self, *_: object) -> NoReturn:
        _refuse("it looks at the attention implementation")

    __eq__ = __ne__ = __lt__ = __hash__ = __bool__ = __len__ = __iter__ = __contains__ = _look
    __getitem__ = __add__ = __radd__ = __mod__ = __rmod__ = __str__ = __repr__ = __format__ = _look
    __getattr__ = _look


class AttentionFunctions:
    """A stand-in for a modeling module's `ALL_ATTENTION_FUNCTIONS`."""

    def __init__(self, tracer: RegionTracer, module_name: str) -> None:
        self._tracer = tracer
        self._module_name = module_name

    def get_interface(self, implementation: object, default: Any = None) -> Callable[..., Any]:
        if not isinstance(implementation, Implementation):
            _refuse(f"its attention is not chosen by {_IMPLEMENTATION_PATH}")
        eager = getattr(default, "__name__", "eager_attention_forward")
        return functools.partial(self._tracer.attend, self._module_name, eager)

    def __getattr__(self, name: str) -> NoReturn:
        _refuse("it looks up an attention as an attribute of their table")


class TorchView:
    """`torch` without functions that depend on the state of the process while tracing."""

    def __getattr__(self, name: str) -> Any:
        if name in _STATEFUL:
            _refuse(f"it asks torch.{name}")
        return getattr(torch, name)


class RegionTracer(GraphAppendingTracer):
    """Traces one variant of a module's forward, once. Every traced value is a node of `graph`."""

    def __init__(self, module: nn.Module, variant: Variant) -> None:
        super().__init__(fx.Graph())
        self.module = module
        self.variant = variant
        self.base = base_class(type(module))
        self.hidden: fx.Node | None = None
        self._globals: dict[int, dict[str, Any]] = {}
        self._view: nn.Module | None = None

    def trace(self) -> fx.Graph:
        """Return the graph.

        Raises:
            TraceError, or any error of the forward when it cannot use a traced value.
        """
        function = forward_function(self.module)
        args, kwargs = self._placeholders(function)
        view = self._view = self._make_view()
        output = self._retarget(function)(view, *args, **kwargs)
        self.graph.output(self.create_arg(output))
        return self.graph

    # Interface of fx tracers
    # -----------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return RegionProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if a is self._view and a is not None:
            # Not a `self` placeholder: fx's generated code would free it after its last use.
            return self.create_node("get_attr", "bishare_self", (), {})
        if type(a) is ChildView:
            return self.create_node("get_attr", a._path, (), {})
        if isinstance(a, Implementation):
            return self.create_node("get_attr", _IMPLEMENTATION_PATH, (), {})
        if isinstance(a, torch.Tensor):
            raise TraceError("it creates a tensor")
        return super().create_arg(a)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> fx.Node:
        if leaves.OPAQUE_KWARGS in kwargs and target not in _TAKES_OPAQUE_KWARGS:
            raise TraceError(f"it hands **kwargs to {target}")
        if (kind, target) == ("call_method", "update") and args[0].op == "placeholder":
            kind = "call_function"
            target = leaves.update_cache
        return super().create_node(kind, target, args, kwargs, *more, **named)

    # Stand-ins ----------------------------------------------------------------------------------

    def attribute(self, path: str) -> Any:
        """Return a node that reads `self.<path>` at run time."""
        return self.create_proxy("get_attr", path, (), {})

    def attend(self, module_name: str, eager: str, /, *args: Any, **kwargs: Any) -> Any:
        head = (module_name, eager, Implementation())
        return self.create_proxy("call_function", leaves.attend, (*head, *args), kwargs)

    def _placeholders(self, function: types.FunctionType) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            match parameter.kind:
                case inspect.Parameter.VAR_KEYWORD:
                    node = self.create_node("placeholder", f"**{parameter.name}", (), {})
                    kwargs[leaves.OPAQUE_KWARGS] = KwargsProxy(node, self)
                    continue
                case inspect.Parameter.VAR_POSITIONAL:
                    raise TraceError(f"its forward takes *{parameter.name}")
                case inspect.Parameter.KEYWORD_ONLY:
                    raise TraceError(f"its forward takes {parameter.name} by keyword only")
            default = () if parameter.default is parameter.empty else (parameter.default,)
            if default and not isinstance(parameter.default, _LITERALS):
                raise TraceError(f"the default of {parameter.name} is not a literal")
            node = self.create_node("placeholder", parameter.name, default, {})
            self.hidden = self.hidden or node
            args.append(None if parameter.name in self.variant.absent else self.proxy(node))
        return args, kwargs

    def _make_view(self) -> nn.Module:
        """Create the stand-in for `self`."""
        state = dict(self.module.__dict__)
        for name in FORWARDS:
            state.pop(name, None)
        state["training"] = self.variant.training
        state["_modules"] = {
            name: child if child is None else ChildView(self, name, child)
            for name, child in self.module._modules.items()
        }
        for kind in ("_parameters", "_buffers"):
            state[kind] = {
                name: tensor if tensor is None else self.attribute(name)
                for name, tensor in state[kind].items()
            }
        if "config" in state:
            state["config"] = ConfigView(self, state["config"])
        for name, value in self.module.__dict__.items():
            # `layer_idx` differs between layers. Floats (`scaling`, `attention_dropout`) are always
            # data, and later changes must take effect. Functions stored as attributes
            # (`self.act_fn`) are called, not traced.
            is_index = name == "layer_idx" and value is not None
            if name in state and (is_index or isinstance(value, (float, *_FUNCTIONS))):
                state[name] = self.attribute(name)
        view: nn.Module = object.__new__(self._view_class())
        object.__setattr__(view, "__dict__", state)
        return view

    def _view_class(self) -> type[nn.Module]:
        """Create a subclass of the module's class whose methods use the stand-ins, and set no attributes."""

        def refuse_to_set(_: object, name: str, *value: object) -> NoReturn:
            _refuse(f"it sets self.{name}")

        members: dict[str, Any] = {"__setattr__": refuse_to_set, "__delattr__": refuse_to_set}
        for cls in reversed(self.base.__mro__[: self.base.__mro__.index(nn.Module)]):
            for name, member in vars(cls).items():
                if isinstance(member, types.FunctionType) and not name.startswith("__"):
                    members[name] = self._method(name, member)
        return type(self.base.__name__, (self.base,), members)

    def _method(self, name: str, function: types.FunctionType) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if hasattr(function, "__wrapped__"):
                _refuse(f"it calls self.{name}, which is decorated")
            return self._retarget(function)(*args, **kwargs)

        return call

    def _retarget(self, function: types.FunctionType) -> Callable[..., Any]:
        """Copy `function`, with stand-ins for its globals and for its `**kwargs`."""
        code = function.__code__
        if "__class__" in code.co_freevars:
            raise TraceError("it calls super()")
        takes_kwargs = bool(code.co_flags & inspect.CO_VARKEYWORDS)
        if takes_kwargs:
            if code.co_flags & inspect.CO_VARARGS:
                raise TraceError(f"{function.__name__} takes *args and **kwargs")
            # Python builds a plain dict for `**kwargs`, whose `.get(...)` would return a wrong
            # answer. As a keyword-only argument in the same slot it can be a KwargsProxy.
            code = code.replace(
                co_flags=code.co_flags & ~inspect.CO_VARKEYWORDS,
                co_kwonlyargcount=code.co_kwonlyargcount + 1,
            )
        copy = types.FunctionType(
            code,
            self._stand_in_globals(function),
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        if not takes_kwargs:
            return copy
        slot = code.co_varnames[code.co_argcount + code.co_kwonlyargcount - 1]

        def call(*args: Any, **kwargs: Any) -> Any:
            opaque = kwargs.pop(leaves.OPAQUE_KWARGS, {})
            return copy(*args, **kwargs, **{slot: opaque})

        return call

    def _stand_in_globals(self, function: types.FunctionType) -> dict[str, Any]:
        real = function.__globals__
        if id(real) in self._globals:
            return self._globals[id(real)]
        module_name = real["__name__"]
        stand_ins = self._globals[id(real)] = dict(real)
        for name, value in real.items():
            # transformers wraps a function that `kernels` may replace in a module.
            if isinstance(value, (types.FunctionType, nn.Module)):
                stand_ins[name] = self._leaf(module_name, name, value)
            elif value is torch:
                stand_ins[name] = TorchView()
        for name in ("isinstance", "hasattr", "type", "id", "callable"):
            stand_ins.setdefault(name, _refuse_proxies(name))
        if "ALL_ATTENTION_FUNCTIONS" in real:
            stand_ins["ALL_ATTENTION_FUNCTIONS"] = AttentionFunctions(self, module_name)
        return stand_ins

    def _leaf(self, module_name: str, name: str, function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.create_proxy(
                "call_function", leaves.call_global, (module_name, name, *args), kwargs
            )

        call.__name__ = name
        return call


def _refuse_proxies(name: str) -> Callable[..., Any]:
    """Make the builtin `name` reject traced values, because it would inspect the stand-in."""
    builtin = getattr(builtins, name)

    def call(*args: Any) -> Any:
        if any(isinstance(arg, fx.Proxy) for arg in args):
            _refuse(f"it asks {name}() of a value")
        return builtin(*args)

    return call


def _refuse(reason: str) -> NoReturn:
    raise TraceError(reason)
