"""``pocketlm perplexity``."""

from __future__ import annotations

from pathlib import Path

import click

from pocketlm.cli.common import json_option, open_model, options, print_json, threads_option


@click.command(short_help="Measure how well a model predicts a text.")
@click.argument("names", nargs=-1, metavar="[MODEL] FILE")
@options(
    click.option(
        "--context",
        default=512,
        show_default=True,
        type=click.IntRange(2),
        metavar="N",
        help="Tokens that are read together.",
    ),
    click.option(
        "--stride",
        type=click.IntRange(1),
        metavar="N",
        help="Score only the last N of each window: more context, more work.",
    ),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after this many tokens."),
    threads_option,
    click.option("--precise", is_flag=True, help="Do not round activations to 8 bits."),
    json_option,
)
def command(
    names: tuple[str, ...],
    context: int,
    stride: int | None,
    limit: int | None,
    threads: int | None,
    precise: bool,
    as_json: bool,
) -> None:
    """Measure how well MODEL predicts the text in FILE. Lower is better.

    Perplexity is a figure per token, so it compares models that share a vocabulary; bits per byte compares
    any two. Without MODEL the bundled model is measured. The text is cut into windows of --context tokens;
    each token is scored once.

    \b
    Example:
        pocketlm perplexity my-model book.txt --context 512
    """
    if len(names) not in (1, 2):
        raise click.UsageError("expected [MODEL] FILE")
    model, file = names[0] if len(names) == 2 else None, Path(names[-1])
    from tqdm import tqdm

    from pocketlm.loading.files import storage_errors

    with storage_errors(file):
        size = file.stat().st_size
    with (
        open_model(model, threads=threads, precise=precise) as lm,
        tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=True if as_json else None) as bar,
    ):
        found = lm.perplexity(
            file, context=context, stride=stride, limit=limit, progress=lambda done: bar.update(done - bar.n)
        )
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(f"tokens         {found.tokens}")
    click.echo(f"bytes          {found.bytes}")
    click.echo(f"perplexity     {found.perplexity:.4f}")
    click.echo(f"bits per byte  {found.bits_per_byte:.4f}")
