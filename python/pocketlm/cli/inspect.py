"""``pocketlm inspect``."""

from __future__ import annotations

import click

from pocketlm.cli.common import adapter_of, human, json_option, print_json, recovery_option


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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, kind, *figures in rows:
        aligned = (f"{text:>{width}}" for text, width in zip(figures, widths[2:], strict=True))
        click.echo("  ".join((f"{name:<{widths[0]}}", f"{kind:<{widths[1]}}", *aligned)))
    click.echo()
    click.echo(f"model                            {opened.path.name} ({found.model_type})")
    click.echo(f"vocabulary, context              {found.vocab_size}, {found.context_length}")
    click.echo(f"parameters                       {found.parameters:,}")
    if found.adapter_bytes:
        share = f"{found.adapter_parameters:,} more parameters, {human(found.adapter_bytes)}"
        click.echo(f"recovery adapter                 {share}")
    click.echo(f"bytes                            {human(found.bytes)}")
    click.echo(f"bits per weight, projections     {found.bits_per_weight_projections:.3f}")
    click.echo(f"bits per weight, everything      {found.bits_per_weight_all:.3f}")
