"""Records: dataclasses of which little is compiled at each start."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record:
    """A dataclass whose fields type checkers hold to be frozen, unless ``frozen=False``.

    `dataclass` writes the text of six methods for each frozen class and compiles them, which took a tenth of
    a short command. Here it writes `__init__` alone. With ``eq=False`` a record equals itself only.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, *, frozen: bool = True, eq: bool = True) -> None:
        dataclass(repr=False, eq=False)(cls)
        if not eq:
            cls.__eq__ = object.__eq__  # type: ignore[method-assign]
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __repr__(self) -> str:
        values = (f"{name}={value!r}" for name, value in self._values().items())
        return f"{type(self).__qualname__}({', '.join(values)})"

    def _values(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}
