"""``pocketlm profile``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from pocketlm.cli.common import (
    adapter_of,
    json_option,
    options,
    print_json,
    recovery_option,
    threads_option,
    wrapped,
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
    click.option(
        "--columns",
        metavar="NAMES",
        help="Only these, as 'bytes,time,share': kind, shape, bits, bytes, macs, time, spread, roof, rate, "
        "memory, share, energy, kl, bound.  [default: those that there is room for]",
    ),
    click.option("--wide", is_flag=True, help="All columns, however wide the lines."),
    click.option("--top", type=click.IntRange(1), metavar="N", help="Only the first N."),
    click.option(
        "--what-if",
        "changes",
        multiple=True,
        metavar="PATTERN=KIND",
        help="Predict other kinds, as 'ffn.*=p2v', or bits, or those of a recipe's FILE; repeatable.",
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
    columns: str | None,
    wide: bool,
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
    from pocketlm.profile import profile
    from pocketlm.profile.columns import COLUMNS, chosen
    from pocketlm.profile.names import matching, operations, with_choice
    from pocketlm.profile.opened import opened
    from pocketlm.profile.places import check_places

    # Whatever can be known to be wrong is said before the measurements.
    asked = _asked(changes)
    if recipe is not None and not asked:
        raise ParameterError("--recipe: needs --what-if")
    if wide and columns:
        raise click.UsageError("--wide shows all columns: give it or --columns")
    shown = tuple(COLUMNS) if wide else chosen(columns, "--columns") if columns is not None else None
    check_places({"--html": html, "--recipe": recipe})
    if html is not None:
        from pocketlm.profile.html import require_plotly

        require_plotly()
    adapter = adapter_of(no_recovery)
    with opened(
        model, prompt=prompt, context=context, threads=threads, precise=precise, adapter=adapter
    ) as lm:
        assert lm.loaded is not None
        known = operations(lm.loaded.graph, lm.loaded.store)
        choices = {operation.name for operation in known if operation.choice}
        for pattern in patterns:
            matching(pattern, known, "--filter")
        for pattern, (kind, source) in asked.items():
            with_choice(pattern, kind, known, choices, source)
        found = profile(
            lm,
            prompt=prompt,
            context=context,
            repeats=repeats,
            sensitivities=sensitivities,
            watts=watts,
            cache=not no_cache,
        )
    rows = found.table.filter(*patterns) if patterns else found.table
    if html is not None or asked:
        found.measure_kinds(None if as_json else _progress())
    predicted = found.what_if({pattern: kind for pattern, (kind, _) in asked.items()}) if asked else None
    if html is not None:
        found.to_html(html)
    if recipe is not None and predicted is not None:
        predicted.save(recipe)
    steps = ("decode", "prefill") if step == "both" else (step,)
    if as_json:
        # Sorted by the first of the steps.
        value = {**found.to_dict(), "rows": rows.sort(sort, steps[0]).to_dicts()[:top]}
        print_json(value if predicted is None else {**value, "what_if": predicted.to_dict()})
        return
    from rich.console import Console

    from pocketlm.profile.terminal import heading, notes, prediction, tables

    console = Console(highlight=False, soft_wrap=False)
    # Columns that were asked for are shown, however wide the lines.
    broad = console if shown is None else Console(highlight=False, width=max(console.width, 10_000))
    room = 10_000 if wide else console.width

    def say(lines: list[str]) -> None:
        for line in wrapped(lines, console.width):
            console.print(line, markup=False, soft_wrap=True)

    say(heading(found, steps))
    made, shown = tables(found, rows, steps, by=by, sort=sort, top=top, width=room, columns=shown)
    for one in made:
        console.print()
        broad.print(one)
    console.print()
    say(notes(found, rows, steps, shown))
    if predicted is not None:
        console.print()
        say(prediction(found.what_if(), predicted, changes, steps))
    for path in filter(None, (html, recipe)):  # whole, to be copied
        console.print(f"wrote        {path}", markup=False, soft_wrap=True)


def _asked(changes: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Pattern to kind, and the option or file that says so; of those that match one tensor the last decides.

    Raises:
        ParameterError: a kind is unknown, or a file no recipe.
        MissingFileError, FileFormatError: a file cannot be read.
    """
    from pocketlm.loading.files import read_json
    from pocketlm.palettize.recipe import recipe_kinds

    found: dict[str, tuple[str, str]] = {}
    for change in changes:
        is_file = False
        with suppress(OSError):  # what is too long for a file's name, say, is none
            is_file = Path(change).is_file()
        if is_file:
            kinds, source = recipe_kinds(read_json(Path(change)), change), change
        else:
            name, equals, kind = change.rpartition("=")
            if not equals or not name:
                raise click.UsageError(
                    f"--what-if: {change!r:.100} is neither of the form PATTERN=KIND nor the file of a recipe"
                )
            kinds, source = recipe_kinds({name: kind}, "--what-if"), "--what-if"
        for name, kind in kinds.items():
            found.pop(name, None)  # a pattern that is given again decides from its new place
            found[name] = kind, source
    return found


def _progress() -> Callable[[int, int], None]:
    """Shows what is being measured, where somebody looks. Without a total: rounds go on as time allows."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            text = f"measuring products: {done + 1}\r" if done < total else "\033[K"
            print(text, end="", file=sys.stderr, flush=True)

    return show
