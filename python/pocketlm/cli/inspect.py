"""``pocketlm inspect``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

import click

from pocketlm.cli.common import adapter_of, human, json_option, print_json, recovery_option, say


@click.command(short_help="List the tensors of a model, their bits and bytes.")
@click.argument("model", required=False)
@recovery_option
@json_option
def command(model: str | None, no_recovery: bool, as_json: bool) -> None:
    """List what MODEL is made of: every tensor with kind, shape, bits and bytes.

    Two figures sum it up. Bits per weight of the projections counts the matrices inside the layers, which
    decide the speed; bits per weight of everything counts all there is, a recovery adapter too. Both include
    codebooks and scales.
    Without MODEL: the bundled model.

    \b
    Example:
        pocketlm inspect my-model
    """
    from pocketlm.assemble import BUNDLED
    from pocketlm.describe import describe
    from pocketlm.loading import open_model

    name = BUNDLED if model is None else model
    opened = open_model(name, check_values=False, adapter=adapter_of(no_recovery))
    found = describe(opened.graph, opened.store)
    if as_json:
        print_json({"model": opened.path.name, **found.to_dict()})
        return
    rows = [("tensor", "kind", "shape", "bits", "bytes")]
    for t in found.tensors:
        rows.append((t.name, t.kind, " x ".join(map(str, t.shape)), f"{t.bits:.2f}", human(t.bytes)))
    _print_table(rows)
    click.echo()
    say(f"model                            {opened.path.name} ({found.model_type})")
    say(f"vocabulary, context              {found.vocab_size}, {found.context_length}")
    say(f"parameters                       {found.parameters:,}")
    if found.adapter_bytes:
        share = f"{found.adapter_parameters:,} more parameters, {human(found.adapter_bytes)}"
        say(f"recovery adapter                 {share}")
    say(f"bytes                            {human(found.bytes)}")
    say(f"bits per weight, projections     {found.bits_per_weight_projections:.3f}")
    say(f"bits per weight, everything      {found.bits_per_weight_all:.3f}")


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Names, kinds and figures; in a terminal that is too narrow for them, short names and no shapes. What
    else reads a table has room for all."""
    from pocketlm.abbreviated import abbreviated, least_width

    names = {name: name for name, *_ in rows}
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        if columns - sum(_widths(rows)) < least_width(names):
            rows = [(name, kind, *figures) for name, kind, _, *figures in rows]
        names = abbreviated(names, columns - sum(_widths(rows)))
    longest, (kinds, *widths) = max(map(len, names.values())), _widths(rows)
    for name, kind, *figures in rows:
        aligned = (f"{text:>{width}}" for text, width in zip(figures, widths, strict=True))
        click.echo(f"{names[name]:<{longest}}  {kind:<{kinds - 2}}{''.join(aligned)}")


def _widths(rows: Sequence[tuple[str, ...]]) -> list[int]:
    """Characters that each column takes behind the first, with the two that stand before it."""
    return [2 + max(map(len, column)) for column in [*zip(*rows, strict=True)][1:]]
