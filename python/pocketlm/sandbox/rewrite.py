"""Adds to a parsed template the calls that count its steps and bound what it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.compiler import CodeGenerator

from pocketlm.sandbox.limits import spend

MAX_NAMES = 1000  # of variables; each branch of a template takes time for all of them in compiling


class TimedGenerator(CodeGenerator):
    """Writes the Python of a template within the limit of time."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        spend(0)
        return super().visit(node, *args, **kwargs)


def count_steps(tree: nodes.Template) -> nodes.Template:
    """The same template, counting its steps and bounding what it makes."""
    if tree.find(nodes.EvalContextModifier) is not None:
        # Its value would be computed while compiling.
        raise JinjaError("autoescape is not allowed here")
    if len({name.name for name in tree.find_all(nodes.Name)}) > MAX_NAMES:
        raise JinjaError(f"has more than {MAX_NAMES} variables")
    node: nodes.For | nodes.Macro | nodes.CallBlock
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):  # type: ignore[assignment]
        node.body.insert(0, nodes.ExprStmt(_call("tick")))
        if isinstance(node, nodes.For) and node.test is not None:
            # The passes that the condition leaves out; `tick` gives what is false.
            node.test = nodes.Or(_call("tick"), node.test)
    _rewrite(tree, _change)
    if tree.environment is not None:
        tree.set_environment(tree.environment)
    return tree


def _call(name: str, *args: nodes.Expr) -> nodes.Expr:
    """A call of a method of the environment."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _change(node: nodes.Node) -> nodes.Node:
    if isinstance(node, nodes.Concat):
        return _call("concat_bounded", *node.nodes)
    if isinstance(node, nodes.Operand):
        node.expr = _call("operand", node.expr)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _call("part", node)
    literal = isinstance(node, nodes.List | nodes.Dict | nodes.Tuple)
    arguments = isinstance(node, nodes.Name) and node.name in ("varargs", "kwargs")
    if isinstance(node, nodes.Expr) and (literal or arguments) and getattr(node, "ctx", "load") == "load":
        return _call("literal", node)
    return node


def _rewrite(node: nodes.Node, change: Callable[[nodes.Node], nodes.Node]) -> None:
    spend(0)
    for field, value in node.iter_fields():
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            if not isinstance(item, nodes.Node):
                continue
            _rewrite(item, change)
            fresh = change(item)
            if fresh is not item:
                if isinstance(value, list):
                    value[index] = fresh
                else:
                    setattr(node, field, fresh)
