"""Frozen dataclasses that cost little to define.

``dataclasses.dataclass`` writes the source of six methods for each class and compiles it, half a millisecond
a class: with the thirty classes that a model is opened with, as long as all else that Python does then. These
methods are the same for every class instead, and look at its fields when they are called. The library itself,
whose import takes as long as that of all modules that a model is opened with, is asked only when somebody
looks at a record as at a dataclass, or tries to change one.

To type checkers the decorator is the one of the standard library, and what it makes is a dataclass:
``fields``, ``replace`` and ``asdict`` of ``dataclasses`` work as with any other. Fields may have a default,
but none of the options of ``dataclasses.field``. Records and frozen dataclasses can inherit one's fields.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass, replace
else:

    def dataclass(*, frozen: bool):
        """As ``dataclasses.dataclass(frozen=True)``, the only form there is."""
        if not frozen:
            raise TypeError("records are frozen")
        return _made

    def replace(record, /, **changes):
        """As ``dataclasses.replace``, of a record or of a dataclass that inherits from one."""
        cls = type(record)
        if "_start" in vars(cls):
            values = vars(record)
            return cls(**{name: values[name] for name in cls._start} | changes)
        import dataclasses

        return dataclasses.replace(record, **changes)


__all__ = ["dataclass", "field_names", "replace"]

_MISSING: Any = object()  # the default of a field that has none
_CLASS_VARIABLES = ("ClassVar[", "typing.ClassVar[")  # annotations of what is no field
_UNKNOWN = ("ClassVar", "InitVar", "KW_ONLY")  # in those that mean something else to the library


def field_names(record: Any) -> list[str]:
    """Names of the fields of a record, or of a dataclass that inherits from one, in order."""
    cls = type(record)
    if "_start" in vars(cls):
        return list(cls._start)
    from dataclasses import fields

    return [field.name for field in fields(record)]


def _made(cls: type) -> type:
    # The library would write one, from a signature that is not known yet.
    if cls.__doc__ is None:
        raise TypeError(f"{cls.__name__} needs a docstring")
    made: Any = cls
    start: dict[str, Any] = {}
    types: dict[str, str] = {}
    for base in reversed(cls.__mro__[1:]):
        if "_start" in vars(base):
            start |= vars(base)["_start"]
            types |= vars(base)["_types"]
        elif "__dataclass_fields__" in vars(base):
            raise TypeError(f"{cls.__name__}: records inherit the fields of records alone")
    for name, kind in cls.__annotations__.items():  # of this class alone
        if not isinstance(kind, str):
            raise TypeError(f"{cls.__name__}.{name}: needs 'from __future__ import annotations'")
        if kind.startswith(_CLASS_VARIABLES):
            continue
        if any(word in kind for word in _UNKNOWN):
            raise TypeError(f"{cls.__name__}.{name}: fields of a record cannot be {kind}")
        start[name], types[name] = _default(cls, name), kind
    made._start, made._types = start, types
    made._required = frozenset(name for name, value in start.items() if value is _MISSING)
    if list(start)[: len(made._required)] != [name for name in start if name in made._required]:
        late = next(name for name in reversed(start) if name in made._required)
        raise TypeError(f"{cls.__name__}.{late} has no default, but one before it has")
    made.__match_args__ = tuple(start)  # type: ignore[misc]
    for name, value in _METHODS.items():
        if name not in vars(cls):
            setattr(made, name, value)
    return cls


def _default(cls: type, name: str) -> Any:
    """The default of a field that a class declares; as in the library, it may be its base's."""
    value = getattr(cls, name, _MISSING)
    # Without the library nobody can have given options, nor while another thread still imports it.
    options = getattr(sys.modules.get("dataclasses"), "Field", None)
    if options is not None and isinstance(value, options):
        raise TypeError(f"{cls.__name__}.{name}: fields of a record have no options but a default")
    if type(value).__hash__ is None:
        raise TypeError(f"{cls.__name__}.{name}: its default could be changed")
    return value


def _init(self: Any, *args: Any, **named: Any) -> None:
    cls = type(self)
    start = cls._start
    if args:
        if len(args) > len(start):
            raise TypeError(f"{cls.__name__} takes {len(start)} values, but {len(args)} were given")
        for name, value in zip(start, args, strict=False):
            if name in named:
                raise TypeError(f"{cls.__name__} got {name!r} twice")
            named[name] = value
    values = start | named
    if len(values) > len(start):
        unknown = next(name for name in named if name not in start)
        raise TypeError(f"{cls.__name__} has no field {unknown!r}")
    if not named.keys() >= cls._required:
        missing = [name for name in start if name in cls._required and name not in named]
        raise TypeError(f"{cls.__name__} needs {', '.join(missing)}")
    self.__dict__.update(values)
    if (check := getattr(self, "__post_init__", None)) is not None:
        check()


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in type(self)._start])


def _repr(self: Any) -> str:
    fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in type(self)._start)
    return f"{type(self).__qualname__}({fields})"


def _eq(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _is_frozen(cls: Any, name: str) -> bool:
    # A plain subclass may have attributes of its own.
    return "_start" in vars(cls) or name in cls._start


def _set(self: Any, name: str, value: object) -> None:
    if not _is_frozen(type(self), name):
        return object.__setattr__(self, name, value)
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(self: Any, name: str) -> None:
    if not _is_frozen(type(self), name):
        return object.__delattr__(self, name)
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


class _Signature:
    """What ``inspect.signature``, and so ``help``, says of a class."""

    def __get__(self, instance: object, cls: Any) -> Any:
        import inspect

        if cls.__init__ is not _init:  # of a plain subclass
            own = inspect.signature(cls.__init__)
            return own.replace(parameters=list(own.parameters.values())[1:])
        kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        return inspect.Signature(
            [
                inspect.Parameter(
                    name, kind, default=empty if default is _MISSING else default, annotation=cls._types[name]
                )
                for name, default in cls._start.items()
            ],
            return_annotation=None,
        )


class _OfTwin:
    """An attribute by which the standard library knows a dataclass: that of one with the same fields, which
    is made when somebody asks."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, cls: Any) -> Any:
        import dataclasses

        record = next(base for base in cls.__mro__ if "_start" in vars(base))
        twin = vars(record).get("_twin")
        if twin is None:
            fields: list[Any] = [
                (name, record._types[name], *(() if default is _MISSING else (default,)))
                for name, default in record._start.items()
            ]
            namespace = {"__doc__": record.__doc__}
            twin = dataclasses.make_dataclass(
                record.__name__, fields, namespace=namespace, init=False, repr=False, eq=False, frozen=True
            )
            record._twin = twin
        return getattr(twin, self._name)


_METHODS = {
    "__init__": _init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _set,
    "__delattr__": _delete,
    "__replace__": replace,
    "__signature__": _Signature(),
    "__dataclass_fields__": _OfTwin("__dataclass_fields__"),
    "__dataclass_params__": _OfTwin("__dataclass_params__"),
}
