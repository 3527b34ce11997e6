"""``pocketlm profile``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from pocketlm.cli.common import (
    adapter_of,
    human,
    json_option,
    options,
    print_json,
    recovery_option,
    threads_option,
)


@click.command(short_help="Show where bytes and time go, and what other bits would change.")
@click.argument("model", required=False)
@options(
    click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page to explore."),
    click.option(
        "--step",
        type=click.Choice(["decode", "prefill", "both"]),
        default="both",
        show_default=True,
        help="Which step to list.",
    ),
    click.option(
        "--by",
        type=click.Choice(["site", "layer", "op"]),
        default="site",
        show_default=True,
        help="Add layers up, or sites, or list each operation.",
    ),
    click.option(
        "--sort",
        type=click.Choice(["time", "bytes", "macs", "bits", "rate", "energy", "name", "order"]),
        default="order",
        show_default=True,
        help="Largest first; or by name, or in order of execution.",
    ),
    click.option(
        "--filter", "patterns", multiple=True, metavar="PATTERN", help="Only these, as 'ffn.*'; repeatable."
    ),
    click.option("--top", type=click.IntRange(1), metavar="N", help="Only the first N."),
    click.option(
        "--what-if",
        "changes",
        multiple=True,
        metavar="PATTERN=KIND",
        help="Predict other kinds, as 'ffn.*=p2v', or those of a recipe's FILE; repeatable.",
    ),
    click.option(
        "--recipe", type=click.Path(path_type=Path), metavar="FILE", help="Write the recipe of --what-if."
    ),
    click.option(
        "--prompt", type=click.IntRange(1), metavar="N", help="Tokens of the prefill.  [default: 512]"
    ),
    click.option(
        "--context",
        type=click.IntRange(0),
        metavar="N",
        help="Tokens before the decoded one.  [default: 256]",
    ),
    click.option(
        "--repeats",
        type=click.IntRange(1, 10_000),
        default=5,
        show_default=True,
        metavar="N",
        help="Prefills at least, and 20 times as many decode steps; of either as many as take a second.",
    ),
    click.option(
        "--sensitivities",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="JSON: tensor to kind to nats per token.",
    ),
    click.option(
        "--watts",
        type=float,
        metavar="W",
        help="The processor's power at work, where no counter is readable.",
    ),
    threads_option,
    recovery_option,
    click.option("--precise", is_flag=True, help="Do not round activations to 8 bits."),
    click.option("--no-cache", is_flag=True, help="Measure products anew for --html and --what-if."),
    json_option,
)
def command(
    model: str | None,
    html: Path | None,
    step: str,
    by: str,
    sort: str,
    patterns: tuple[str, ...],
    top: int | None,
    changes: tuple[str, ...],
    recipe: Path | None,
    prompt: int | None,
    context: int | None,
    repeats: int,
    sensitivities: Path | None,
    watts: float | None,
    threads: int | None,
    precise: bool,
    no_recovery: bool,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Show where MODEL's bytes and time go on this machine, and what other bits would change.

    One row for each operation, measured inside of real steps: bytes, time, share of the memory's
    speed as measured, and which roof bounds it. Without MODEL: the bundled model.

    \b
    Examples:
        pocketlm profile my-model --html report.html
        pocketlm profile my-model --by op --filter 'ffn.*' --sort time --top 20
        pocketlm profile my-model --what-if 'ffn.*=p2v' --recipe recipe.json
    """
    from pocketlm.errors import ParameterError
    from pocketlm.profile import Table, profile

    pairs = dict(pair for change in changes for pair in _pairs(change))
    if recipe is not None and not pairs:
        raise ParameterError("--recipe: needs --what-if")
    if html is not None:
        from pocketlm.profile.html import require_plotly

        require_plotly()  # before the measurements
    found = profile(
        model,
        prompt=prompt,
        context=context,
        repeats=repeats,
        threads=threads,
        precise=precise,
        adapter=adapter_of(no_recovery),
        sensitivities=sensitivities,
        watts=watts,
        cache=not no_cache,
    )
    rows = found.table.filter(*patterns) if patterns else found.table
    if html is not None or pairs:
        found.measure_kinds(None if as_json else _progress())
    predicted = found.what_if(pairs) if pairs else None
    if html is not None:
        found.to_html(html)
    if recipe is not None and predicted is not None:
        predicted.save(recipe)
    steps = ("decode", "prefill") if step == "both" else (step,)
    if as_json:
        # Sorted by the first of the steps.
        listed = Table(rows.sort(sort, steps[0])[:top])
        value = {**found.to_dict(), "rows": listed.to_dicts()}
        print_json(value if predicted is None else {**value, "what_if": predicted.to_dict()})
        return
    from rich.console import Console

    from pocketlm.profile.terminal import heading, notes, render

    console = Console(highlight=False, soft_wrap=False)
    for line in heading(found):
        console.print(line, markup=False, soft_wrap=True)
    for which in steps:
        console.print()
        console.print(render(found, rows, step=which, by=by, sort=sort, top=top, width=console.width))
    console.print()
    for line in notes(found, rows, steps):
        console.print(line, markup=False, soft_wrap=True)
    if predicted is not None:
        before = found.what_if()
        console.print()
        console.print(f"what if      {', '.join(changes)}", markup=False)
        console.print(f"size         {human(before.bytes)} → {human(predicted.bytes)}")
        console.print(
            "bits         "
            f"{before.bits_per_weight_projections:.2f} → {predicted.bits_per_weight_projections:.2f} "
            f"({before.bits_per_weight_all:.2f} → {predicted.bits_per_weight_all:.2f} of everything)"
        )
        for name in ("decode", "prefill"):
            old, new = (getattr(p, f"{name}_tokens_per_second") for p in (before, predicted))
            console.print(f"{name:<12} {old:,.0f} → {new:,.0f} tokens/s")
        console.print(
            f"energy       {1e3 * before.joules_per_token:.3g} → "
            f"{1e3 * predicted.joules_per_token:.3g} mJ a token"
        )
        console.print(f"divergence   {predicted.kl_told}")
        if predicted.kl is None:
            console.print("             (palettize --calibration measures the kinds that it may choose)")
    for path in (html, recipe):
        if path is not None:
            console.print(f"wrote        {path}", markup=False, soft_wrap=True)


def _pairs(change: str) -> list[tuple[str, str]]:
    from pocketlm.loading.files import read_json
    from pocketlm.palettize.recipe import recipe_kinds

    if Path(change).is_file():
        return [*recipe_kinds(read_json(Path(change)), change).items()]
    name, equals, kind = change.rpartition("=")
    if not equals or not name:
        raise click.UsageError(
            f"--what-if: {change!r:.100} is neither of the form PATTERN=KIND nor the file of a recipe"
        )
    return [(name, kind)]


def _progress() -> Callable[[int, int], None]:
    """Shows what is being measured, where somebody looks."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            text = f"measuring products {done + 1}/{total}\r" if done < total else "\033[K"
            print(text, end="", file=sys.stderr, flush=True)

    return show
