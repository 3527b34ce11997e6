"""``pocketlm inspect``."""

from __future__ import annotations

import click

from pocketlm.cli.common import human, json_option, print_json


@click.command(short_help="List the tensors of a model, their bits and bytes.")
@click.argument("model", required=False)
@json_option
def command(model: str | None, as_json: bool) -> None:
    """List what MODEL is made of: every tensor with kind, shape, bits and bytes.

    Two figures sum it up. Bits per weight of the projections counts the matrices inside the layers, which
    decide the speed; bits per weight of everything counts all there is. Both include codebooks and scales.
    Without MODEL: the bundled model.

    \b
    Example:
        pocketlm inspect my-model
    """
    from pocketlm.assemble import BUNDLED
    from pocketlm.describe import describe
    from pocketlm.loading import open_model

    opened = open_model(BUNDLED if model is None else model, check_values=False)
    found = describe(opened.graph, opened.store)
    if as_json:
        print_json({"model": opened.path.name, **found.to_dict()})
        return
    rows = [("tensor", "kind", "shape", "bits", "bytes")]
    for t in found.tensors:
        rows.append((t.name, t.kind, " x ".join(map(str, t.shape)), f"{t.bits:.2f}", human(t.bytes)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, kind, *figures in rows:
        aligned = (f"{text:>{width}}" for text, width in zip(figures, widths[2:], strict=True))
        click.echo("  ".join((f"{name:<{widths[0]}}", f"{kind:<{widths[1]}}", *aligned)))
    click.echo()
    click.echo(f"model                            {opened.path.name} ({found.model_type})")
    click.echo(f"vocabulary, context              {found.vocab_size}, {found.context_length}")
    click.echo(f"parameters                       {found.parameters:,}")
    click.echo(f"bytes                            {human(found.bytes)}")
    click.echo(f"bits per weight, projections     {found.bits_per_weight_projections:.3f}")
    click.echo(f"bits per weight, everything      {found.bits_per_weight_all:.3f}")
