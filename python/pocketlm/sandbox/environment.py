"""The environment of chat templates: each operation of a template comes through here to be bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from pocketlm.sandbox.filters import bounded_filters, counted_tests
from pocketlm.sandbox.formats import check_percent, format_method, raise_exception, strftime_now
from pocketlm.sandbox.limits import MAX_BITS, MAX_ITEMS, MAX_TEXT, joined, made, measure, spend, text
from pocketlm.sandbox.methods import ALLOWED, call_method
from pocketlm.sandbox.rewrite import TimedGenerator

_NO_ATTRIBUTES = (bytes, bytearray, int, float, set, frozenset, type)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment for code from a stranger. Compile what :func:`count_steps` returns."""

    code_generator_class = TimedGenerator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        # Nothing is computed while compiling: `finalize` needs a context, which is not there yet.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            optimized=False,
            finalize=_print,
        )
        self.filters = bounded_filters(self.filters)
        self.tests = counted_tests(self.tests)
        self.globals = {
            "dict": dict,
            "joiner": self.globals["joiner"],
            "namespace": _Namespace,
            "raise_exception": raise_exception,
            "range": _range,
            "strftime_now": strftime_now,
        }

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins what a block, a macro or a ``set`` block printed."""
        return joined("", parts)

    def tick(self) -> str:
        spend()
        return ""

    def operand(self, value: Any) -> Any:
        """A value to compare with: a chain of comparisons is one expression, with nothing else to stop it."""
        spend(0)
        return value

    def literal(self, value: Any) -> Any:
        """A list, tuple or mapping that the template makes."""
        spend(1 + len(value))
        return made(value)

    def part(self, value: Any) -> Any:
        """A slice."""
        return made(value)

    def concat_bounded(self, *parts: Any) -> str:
        return joined("", map(text, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise JinjaError("the operator '**' is not allowed here")
        spend()
        for value in (left, right):
            if isinstance(value, int) and value.bit_length() > 2 * MAX_BITS:
                raise JinjaError(f"computes with a number of more than {2 * MAX_BITS} bits")
        if operator == "%" and isinstance(left, str):
            check_percent(left, right)
        if operator == "*":
            _check_repetition(left, right)
            _check_repetition(right, left)
        if operator == "-" and not isinstance(left, int | float):
            # Of the keys of a mapping; a set compares with, and keeps, whatever the other side has.
            measure(right)
        return made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") == "format":
            return format_method(self, owner)
        return None

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in ALLOWED
        if isinstance(obj, _NO_ATTRIBUTES) or (isinstance(obj, dict) and attr == "fromkeys"):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        # Also for each part of the `attribute` of a filter.
        spend(0)
        return super().getitem(obj, argument)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is self:
            # Added by `count_steps`; these count what they are for.
            return __obj(*args)
        spend()
        if isinstance(owner, str):
            # What Jinja adds in loops and blocks for functions that take a context.
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return made(call_method(__obj, args, kwargs))
        return made(super().call(__context, __obj, *args, **kwargs))


class _Namespace(Namespace):
    # What it holds can change after it is measured, so it is not printed.
    def __repr__(self) -> str:
        return "<Namespace>"


class _Generation(Extension):
    """The ``{% generation %}`` block, which marks an assistant's words for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for token in stream:
            spend(0)
            yield token


def _check_repetition(many: Any, times: Any) -> None:
    most = MAX_TEXT if isinstance(many, str) else MAX_ITEMS
    if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > most:
        raise JinjaError("a product is too large")


@pass_context
def _print(_: Context, value: Any) -> str:
    spend(0)
    return text(value)


def _range(*bounds: int) -> range:
    # Larger numbers can be chosen to have the same hash, and a set of those takes the square of its size.
    if any(abs(bound) > 1 << 53 for bound in bounds):
        raise JinjaError("range: a bound is too large")
    return safe_range(*bounds)
