"""Records behave as the frozen dataclasses of the standard library do."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import pickle
import sys
import types
from typing import Any, ClassVar

import pytest

from pocketlm import SamplingParams
from pocketlm.errors import ParameterError
from pocketlm.graph import Linear, Weight
from pocketlm.records import dataclass, field_names, replace


@dataclass(frozen=True)
class Base:
    """A base."""

    kind: ClassVar[str] = "base"
    name: str


@dataclass(frozen=True)
class Ours(Base):
    """A record."""

    kind: ClassVar[str] = "ours"
    sizes: tuple[int, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError("scale")


@dataclasses.dataclass(frozen=True)
class TheirBase:
    """A base."""

    kind: ClassVar[str] = "base"
    name: str


@dataclasses.dataclass(frozen=True)
class Theirs(TheirBase):
    """A record."""

    kind: ClassVar[str] = "ours"
    sizes: tuple[int, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError("scale")


BOTH = pytest.mark.parametrize("made", [Ours, Theirs])


@BOTH
@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), {}),
        (("a",), {}),
        (("a", (1,)), {"name": "b"}),
        (("a", (1,), 2.0, 3), {}),
        (("a", (1,)), {"other": 1}),
        ((), {"sizes": (1,)}),
    ],
)
def test_wrong_arguments_are_type_errors(made: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        made(*args, **named)


@BOTH
def test_values_are_fields(made: Any) -> None:
    one, other = made("a", (1, 2)), made(sizes=(1, 2), name="a", scale=1.0)
    assert one == other and hash(one) == hash(other)
    assert one != made("a", (1, 2), 2.0) and one != ("a", (1, 2), 1.0) and one.kind == "ours"
    assert repr(one) == f"{made.__name__}(name='a', sizes=(1, 2), scale=1.0)"
    assert vars(one) == dataclasses.asdict(one) == {"name": "a", "sizes": (1, 2), "scale": 1.0}
    assert list(vars(made("a", scale=2.0, sizes=()))) == [field.name for field in dataclasses.fields(made)]
    assert dataclasses.replace(one, scale=3.0) == made("a", (1, 2), 3.0)
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(ValueError, match="scale"):
        made("a", (), -1.0)


@BOTH
def test_the_standard_library_knows_it(made: Any) -> None:
    one = made("a", (1,))
    assert dataclasses.is_dataclass(made) and dataclasses.is_dataclass(one)
    assert [(f.name, f.type) for f in dataclasses.fields(made)] == [
        ("name", "str"), ("sizes", "tuple[int, ...]"), ("scale", "float")
    ]  # fmt: skip
    found = [f.default for f in dataclasses.fields(one)]
    assert found == [dataclasses.MISSING, dataclasses.MISSING, 1.0]
    assert made.__match_args__ == ("name", "sizes", "scale")
    assert field_names(one) == ["name", "sizes", "scale"]
    for change in (replace, dataclasses.replace, *([copy.replace] if hasattr(copy, "replace") else [])):
        assert change(one, scale=2.0) == made("a", (1,), 2.0) and change(one) == one
        with pytest.raises(TypeError):
            change(one, other=1)
        with pytest.raises(ValueError, match="scale"):
            change(one, scale=-1.0)


def test_dataclasses_that_inherit_are_changed_with_their_own_fields() -> None:
    @dataclasses.dataclass(frozen=True)
    class More(SamplingParams):
        more: int = 0

    one = More(max_tokens=3, more=2)
    assert field_names(one)[-1] == "more" and replace(one, top_k=5) == More(max_tokens=3, more=2, top_k=5)
    assert one.replace(more=4).more == 4  # type: ignore[attr-defined]
    assert one.over(SamplingParams(top_k=7)) == More(max_tokens=3, more=2, top_k=7)
    with pytest.raises(ParameterError, match="moer"):
        one.replace(moer=4)


@BOTH
def test_fields_cannot_be_changed(made: Any) -> None:
    one = made("a", ())
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'name'"):
        one.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'scale'"):
        del one.scale
    assert one == made("a", ())


@BOTH
def test_a_pattern_takes_fields_in_order(made: Any) -> None:
    match made("a", (3,)):
        case Ours(name, sizes) | Theirs(name, sizes):
            assert (name, sizes) == ("a", (3,))
        case _:
            pytest.fail("no pattern")


def test_their_signature_is_that_of_a_dataclass() -> None:
    assert str(inspect.signature(Ours)) == str(inspect.signature(Theirs))
    assert str(inspect.signature(Weight)).startswith("(name: 'str', shape: 'tuple[int, ...]', transposed")


def test_a_class_keeps_what_it_defines_itself() -> None:
    @dataclass(frozen=True)
    class Loud:
        """Has its own text and hash."""

        value: int

        def __repr__(self) -> str:
            return "LOUD"

        def __hash__(self) -> int:
            return 7

    assert repr(Loud(1)) == "LOUD" and hash(Loud(1)) == 7 and Loud(1) == Loud(1) != Loud(2)


def test_defaults_are_found_as_in_the_library() -> None:
    @dataclass(frozen=True)
    class Again(Ours):
        """The field's default is its base's, and a class is one like any other."""

        scale: float
        made: type = list

    assert Again("a", (1,)) == Again("a", (1,), 1.0, list)


def test_a_record_is_defined_while_the_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    # By another thread, which has not come to its classes yet.
    monkeypatch.setitem(sys.modules, "dataclasses", types.ModuleType("dataclasses"))

    @dataclass(frozen=True)
    class Early:
        """Has fields with and without a default."""

        first: int
        second: int = 2

    assert vars(Early(1)) == {"first": 1, "second": 2}


def test_what_is_kept_beside_the_fields_is_not_copied() -> None:
    @dataclass(frozen=True)
    class Long:
        """Remembers what took long."""

        value: int

        @functools.cached_property
        def twice(self) -> int:
            return 2 * self.value

    one = Long(1)
    assert one.twice == 2 and replace(one, value=3).twice == 6 and one == Long(1)


def test_what_is_not_a_record_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="frozen"):
        dataclass(frozen=False)(Base)
    with pytest.raises(TypeError, match="docstring"):

        @dataclass(frozen=True)
        class Bare:
            value: int

    with pytest.raises(TypeError, match=r"Order\.second"):

        @dataclass(frozen=True)
        class Order:
            """A field without a default after one with."""

            first: int = 1
            second: int  # type: ignore[misc]

    for kind in ("dataclasses.InitVar[int]", "KW_ONLY", "t.ClassVar[int]"):
        with pytest.raises(TypeError, match=r"Odd\.value: fields of a record cannot be"):
            dataclass(frozen=True)(type("Odd", (), {"__doc__": "", "__annotations__": {"value": kind}}))

    with pytest.raises(TypeError, match=r"Shared\.values: its default could be changed"):

        @dataclass(frozen=True)
        class Shared:
            """A default that all would share."""

            values: list[int] = []  # noqa: RUF012

    with pytest.raises(TypeError, match="records inherit the fields of records alone"):

        @dataclass(frozen=True)
        class Heir(TheirBase):
            """Its base is a plain dataclass."""

            values: int

    with pytest.raises(TypeError, match="annotations"):
        dataclass(frozen=True)(type("Early", (), {"__doc__": "", "__annotations__": {"value": int}}))

    for options in ({"default_factory": list}, {"repr": False}, {"compare": False}, {"kw_only": True}):
        with pytest.raises(TypeError, match=r"Made\.values"):

            @dataclass(frozen=True)
            class Made:
                """A field with an option."""

                values: Any = dataclasses.field(**options)  # type: ignore[call-overload]


def test_a_plain_subclass_is_its_own() -> None:
    class Noted(Base):
        def __init__(self, name: str, note: str) -> None:
            super().__init__(name)
            self.note = note

    one = Noted("a", "b")
    assert list(inspect.signature(Noted).parameters) == ["name", "note"] and one.note == "b"
    del one.note
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "c"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        repr(Base.__new__(Base))


def test_operations_of_the_graph_are_records() -> None:
    weight = Weight("w", (2, 3))
    op = Linear("layers.0.ffn.down", 2, 0, weight)
    assert op.weights() == (weight,) and op.inputs() == (0,)


def test_frozen_dataclasses_may_inherit_from_a_record_and_others_may_not() -> None:
    @dataclasses.dataclass(frozen=True)
    class More(SamplingParams):
        more: int = 0

    found = More(max_tokens=3, more=2)
    assert (found.max_tokens, found.more, found.temperature) == (3, 2, None)
    assert found == dataclasses.replace(More(more=2), max_tokens=3) and "more=2" in repr(found)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.max_tokens = 4  # type: ignore[misc]
    with pytest.raises(ParameterError):
        More(max_tokens=0)
    with pytest.raises(TypeError, match="frozen"):
        dataclasses.dataclass(
            type("Loose", (SamplingParams,), {"__doc__": "", "__annotations__": {"n": int}})
        )
