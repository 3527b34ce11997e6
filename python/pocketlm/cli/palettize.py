"""``pocketlm palettize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketlm.cli.common import Bytes, Tokens, human, json_option, options, print_json, say, threads_option

if TYPE_CHECKING:
    from pocketlm.palettize import Plan, Report
    from pocketlm.palettize.recovery import Training


@click.command(short_help="Make a small model of a large one: 2 to 8 bits a weight.")
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path), required=False)
@options(
    click.option(
        "--bits",
        type=float,
        metavar="B",
        help="Bits per weight of the projections' codes, 2 to 8; fractions such as 3.5 give more bits to the "
        "matrices that need them. Codebooks and scales come on top, some hundredths of a bit. With a text, "
        "what each kind costs each matrix is measured, for whole numbers too, which takes long: "
        "--kinds 3 --bits 3 measures none of that and gives all of them 3.  "
        "[default: 4, if nothing else is limited]",
    ),
    click.option(
        "--bits-all",
        type=float,
        metavar="B",
        help="Bits per weight of everything, embeddings and scales too.",
    ),
    click.option(
        "--size",
        type=Bytes(),
        metavar="SIZE",
        help="Most bytes of the weights, such as 500MB, an adapter's included.",
    ),
    click.option(
        "--tokens-per-second",
        type=float,
        metavar="N",
        help="At least so fast, when generating on this machine.",
    ),
    click.option(
        "--max-kl",
        type=float,
        metavar="NATS",
        help="Most nats per token from SRC (0.02 is close): makes the smallest model that keeps to it.",
    ),
    click.option(
        "--kinds",
        metavar="LIST",
        help="Kinds or bits to choose from, such as 2,4.  [default: the best of 2, 3, 4 and 8 bits: p2v, p3, "
        "p4, p8]",
    ),
    click.option(
        "--embedding-bits",
        type=int,
        metavar="B",
        help="Bits of the embedding and the output head: 2, 3, 4 or 8.  [default: chosen like those of other "
        "matrices where a budget beside --bits is given, else 8]",
    ),
    click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Text of the kind that the model is for, or a stored calibration: codes then make up for each "
        "other's errors on such text, which loses far less.",
    ),
    click.option(
        "--calibration-out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Store what the text told about the model, for further runs with other bits.",
    ),
    click.option(
        "--compensation/--no-compensation",
        default=True,
        show_default=True,
        help="Whether codes make up for each other's errors where there is a calibration.",
    ),
    click.option(
        "--guided",
        is_flag=True,
        help="Count each output's error by the gradient of the loss there: calibration takes some times as "
        "long (extra train).",
    ),
    click.option(
        "--validation",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Text that judges what a kind costs, at least 256 tokens; of more than 4 MiB the first "
        "4.  [default: the end of the calibration text]",
    ),
    click.option(
        "--recipe",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help='Kinds of single tensors, as JSON: {"NAME": "p4", ...}; p2, p2v, p3, p4, p8, keep, or bits, of '
        "which 2 is p2v. Names may have wildcards.",
    ),
    click.option(
        "--recipe-out",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write the recipe with what each choice costs, to read, to edit and to apply.",
    ),
    click.option(
        "--recover",
        default=0,
        type=click.IntRange(0),
        metavar="R",
        help="Add an adapter of average rank R that restores accuracy, such as 16; needs --calibration. "
        "Its bytes count in --size and --bits-all, its time in --tokens-per-second, nothing of it in --bits.",
    ),
    click.option(
        "--recover-dtype",
        type=click.Choice(["int8", "f16"]),
        default="int8",
        show_default=True,
        help="How the adapter is stored; PEFT reads f16.",
    ),
    click.option(
        "--recover-train",
        default=0,
        type=Tokens(),
        metavar="TOKENS",
        help="Learn from so many tokens of --recover-text, such as 500k (extra train).",
    ),
    click.option(
        "--recover-text",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Text to learn from; the more kinds, the better.",
    ),
    click.option("--dry-run", is_flag=True, help="Choose and report, but make no model."),
    click.option("--overwrite", is_flag=True, help="Replace DST if it exists."),
    threads_option,
    json_option,
)
def command(
    src: str,
    dst: Path | None,
    recipe_out: Path | None,
    dry_run: bool,
    recover: int,
    recover_dtype: str,
    recover_train: int,
    recover_text: Path | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make a small model DST of the 16- or 32-bit model SRC (a directory or a Hugging Face id).

    Weights become codes of a few bits that point into small tables of values: fewer bytes to read, so more
    tokens per second. 4 bits lose little, 2 bits much. With a text, what each choice costs is measured, and
    every matrix gets the bits that it needs. Budgets hold together. DST appears when it is complete; the same
    command goes on where an interrupted one stopped.

    \b
    Examples:
        pocketlm palettize path/to/model my-model --bits 4 --calibration t.txt
        pocketlm palettize path/to/model my-model --bits 3.5 --calibration t.txt
        pocketlm palettize path/to/model my-model --size 500MB --calibration t.txt
        pocketlm palettize path/to/model my-model --bits 3 --calibration t.txt \\
            --recover 16
        pocketlm palettize path/to/model --max-kl 0.02 --calibration t.txt \\
            --recipe-out recipe.json --dry-run
    """
    from pocketlm.palettize import palettize, plan

    if dst is None and not dry_run:
        raise click.UsageError("DST is missing: where the model is to go (or --dry-run)")
    settings |= {"recipe_out": recipe_out, "progress": not as_json}
    untexted = _untexted(settings["calibration"])
    try:
        if dst is None or dry_run:
            if recover or recover_train:
                raise click.UsageError("--recover and --recover-train make a model: not with --dry-run")
            _print_plan(plan(src, **settings), recipe_out, as_json, untexted)
        else:
            settings |= {
                "recover": recover,
                "recover_dtype": recover_dtype,
                "recover_train": recover_train,
                "recover_text": recover_text,
            }
            made = palettize(src, dst, overwrite=overwrite, **settings)
            _print_report(made, recipe_out, as_json, untexted)
        if settings["calibration"] is None and not as_json:
            say(_UNCALIBRATED)
    except KeyboardInterrupt as stopped:
        told = _left(settings) if dst is None or dry_run else _GOES_ON
        raise KeyboardInterrupt(f"interrupted; {told}") from stopped


_UNCALIBRATED = (
    "A calibration text lets codes and bits follow the model's own activations, and loses far less "
    "(--calibration)."
)
_GOES_ON = "the same command goes on from here"


def _left(settings: dict[str, Any]) -> str:
    """What an interrupted dry run leaves behind."""
    if settings["recipe_out"] is not None:
        return _GOES_ON
    stored: Path | None = settings["calibration_out"] or settings["calibration"]
    if settings["calibration_out"] is not None or (stored is not None and stored.is_dir()):
        return f"a dry run without --recipe-out keeps only the calibration in {stored} and costs by it"
    return "a dry run without --recipe-out or --calibration-out keeps nothing"


def _print_report(report: Report, recipe_out: Path | None, as_json: bool, untexted: str) -> None:
    training = report.recovery.training if report.recovery else None
    if as_json:
        tensors = [
            {
                "name": t.name,
                "kind": t.kind,
                "shape": list(t.shape),
                "bytes": t.bytes,
                "relative_error": t.relative_error,
            }
            for t in report.tensors
        ]
        figures = {
            "path": str(report.path),
            "parameters": report.parameters,
            "bytes": report.bytes,
            "bits_per_weight_projections": report.bits_per_weight_projections,
            "bits_per_weight_all": report.bits_per_weight_all,
            "adapter_bytes": report.recovery.bytes if report.recovery else 0,
            "training_losses": report.recovery.losses if report.recovery else None,
            "training_left_out": training.worse if training else 0,
            "seconds": report.seconds,
            "resumed": report.resumed,
        }
        print_json({**figures, **_plan_figures(report.plan), "tensors": tensors})
        return
    click.echo(
        f"{report.path}: {report.parameters:,} parameters in {human(report.bytes)}, {report.seconds:.1f} s"
    )
    if report.resumed:
        say(f"{report.resumed} of {len(report.tensors)} tensors were there from an interrupted run")
    recovery = report.recovery
    _print_figures(report.plan, recipe_out, report.bits_per_weight_all, untexted, recovery is not None)
    if recovery and recovery.bytes:
        ranks = [rank for rank in recovery.ranks.values() if rank]
        low, high = min(ranks), max(ranks)
        span = f"rank {low}" if low == high else f"ranks from {low} to {high}"
        span += f" on {len(ranks)} of {len(recovery.ranks)} projections"
        say(
            f"recovery adapter              {human(recovery.bytes)}, counted in everything, not in "
            f"projections; {span}"
        )
    if recovery and recovery.losses:
        before, after = recovery.losses
        say(
            f"divergence in training        {before:.4f} nats a token at first, {after:.4f} at the end "
            "(of --recover-text)"
        )
    if training and training.worse:
        say(f"training                      {_left_out(training)}")
    if recovery:
        say("divergence after recovery     not measured (pocketlm perplexity --against does)")


def _left_out(training: Training) -> str:
    """That training was of no use, and where."""
    if training.judged is not None:
        before, behind = training.judged
        return (
            f"left out: from {before:.4f} to {behind:.4f} nats on the batch that judges, so it made it worse"
        )
    return f"left out in {training.worse} of {training.parts} layers, which it made worse"


def _print_plan(found: Plan, recipe_out: Path | None, as_json: bool, untexted: str) -> None:
    if as_json:
        print_json({**found.predicted, **_plan_figures(found), "recipe": found.recipe})
        return
    click.echo(f"{found.model} would take {human(found.bytes)}")
    _print_figures(found, recipe_out, found.bits_per_weight_all, untexted)


def _plan_figures(found: Plan) -> dict[str, Any]:
    return {
        "budgets": found.budgets,
        "predicted": found.predicted,
        "measured": found.measured,
    }


def _untexted(calibration: Path | None) -> str:
    """Why no divergence was measured, where none was."""
    if calibration is None:
        return "not measured: no text (--calibration)"
    return "not measured, nor kinds chosen by it: a stored calibration holds no text (--validation)"


def _print_figures(
    found: Plan, recipe_out: Path | None, bits_all: float, untexted: str, recovery: bool = False
) -> None:
    """What was planned. ``bits_all`` counts an adapter too; the divergence is the one before ``recovery``, if
    there is that. ``untexted`` says why there is none."""
    say(f"bits per weight, projections  {found.bits_per_weight_projections:.3f}")
    say(f"bits per weight, everything   {bits_all:.3f}")
    kinds = [planned.kind for planned in found.tensors]
    say(
        "kinds                         "
        + ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    )
    if found.tokens_per_second is not None:
        say(f"tokens per second, predicted  {found.tokens_per_second:,.1f}")
    title = "divergence before recovery" if recovery else "divergence from the source"
    told = untexted
    if found.measured_kl is not None:
        predicted = "" if found.kl is None else f", predicted {found.kl:.4f}"
        told = f"{found.measured_kl:.4f} nats a token{predicted} (judged by {found.measured_tokens:,} tokens)"
    say(f"{title:<30}{told}")
    if recipe_out is not None:
        click.echo(f"wrote                         {recipe_out}")
