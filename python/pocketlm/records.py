"""Frozen dataclasses that cost little to define.

``dataclasses.dataclass`` writes the source of six methods for each class and compiles it, half a millisecond
a class: with the thirty classes that a model is opened with, as long as all else that Python does then. These
methods are the same for every class instead, and look at its fields when they are called.

To type checkers the decorator is the one of the standard library, and what it makes is a dataclass:
``fields``, ``replace`` and ``asdict`` of ``dataclasses`` work as with any other. Fields may have a default,
but none of the options of ``dataclasses.field``. Records and frozen dataclasses can inherit one's fields.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool):
        """As ``dataclasses.dataclass(frozen=True)``, the only form there is."""
        if not frozen:
            raise TypeError("records are frozen")
        return _made


__all__ = ["dataclass"]


def _made(cls: type) -> type:
    # Without a docstring the library would write one, which takes as long as all the rest.
    if cls.__doc__ is None:
        raise TypeError(f"{cls.__name__} needs a docstring")
    _set_frozen(cls, False)
    found: Any = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    start, required = {}, 0
    for field in dataclasses.fields(found):
        start[field.name] = field.default
        plain = field.init and field.repr and field.compare and field.hash is None and not field.kw_only
        if not plain or field.default_factory is not dataclasses.MISSING:
            raise TypeError(f"{cls.__name__}.{field.name}: fields of a record have no options but a default")
        if field.default is dataclasses.MISSING:
            required += 1
            if required < len(start):
                raise TypeError(f"{cls.__name__}.{field.name} has no default, but one before it has")
    found._start = start
    _set_frozen(found, True)
    for name, value in _METHODS.items():
        if name not in vars(cls):
            setattr(found, name, value)
    return found  # type: ignore[no-any-return]


def _set_frozen(cls: type, frozen: bool) -> None:
    # By this the standard library tells which dataclasses may inherit from a record: frozen ones. To make one
    # that is frozen, it would compile methods.
    for record in cls.__mro__:
        if "_start" in vars(record):
            record.__dataclass_params__.frozen = frozen  # type: ignore[attr-defined]


def _init(self: Any, *args: Any, **named: Any) -> None:
    cls = type(self)
    values = dict(cls._start)
    if len(args) > len(values):
        raise TypeError(f"{cls.__name__} takes {len(values)} values, but {len(args)} were given")
    for name, value in zip(values, args, strict=False):
        if name in named:
            raise TypeError(f"{cls.__name__} got {name!r} twice")
        values[name] = value
    for name, value in named.items():
        if name not in values:
            raise TypeError(f"{cls.__name__} has no field {name!r}")
        values[name] = value
    if missing := [name for name, value in values.items() if value is dataclasses.MISSING]:
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
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(self: Any, name: str) -> None:
    if not _is_frozen(type(self), name):
        return object.__delattr__(self, name)
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


class _Signature:
    """What ``inspect.signature``, and so ``help``, says of a class."""

    def __get__(self, instance: object, cls: Any) -> Any:
        import inspect

        if cls.__init__ is not _init:  # of a plain subclass
            own = inspect.signature(cls.__init__)
            return own.replace(parameters=list(own.parameters.values())[1:])
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature(
            [
                inspect.Parameter(
                    field.name,
                    kind,
                    default=inspect.Parameter.empty
                    if field.default is dataclasses.MISSING
                    else field.default,
                    annotation=field.type,
                )
                for field in dataclasses.fields(cls)
            ],
            return_annotation=None,
        )


_METHODS = {
    "__init__": _init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _set,
    "__delattr__": _delete,
    "__signature__": _Signature(),
}
