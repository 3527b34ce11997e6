"""``pocketlm palettize``."""

from __future__ import annotations

from pathlib import Path

import click

from pocketlm.cli.common import human, json_option, options, print_json, threads_option


@click.command(short_help="Make a small model of a large one: 2 to 8 bits a weight.")
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path))
@options(
    click.option(
        "--bits",
        default=4.0,
        show_default=True,
        type=float,
        metavar="B",
        help="Bits per weight, 2 to 8. Fractions such as 3.5 give more bits to the matrices that need them.",
    ),
    click.option(
        "--embedding-bits",
        default=8,
        show_default=True,
        type=int,
        metavar="B",
        help="Bits of the embedding and the output head: 2, 3, 4 or 8.",
    ),
    click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Text of the kind that the model is for: rounding then spares what matters there.",
    ),
    click.option(
        "--recipe",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help='Kinds of single tensors, as JSON: {"NAME": "p4", ...}; p2, p2v, p3, p4, p8 or keep.',
    ),
    click.option("--overwrite", is_flag=True, help="Replace DST if it exists."),
    threads_option,
    json_option,
)
def command(
    src: str,
    dst: Path,
    bits: float,
    embedding_bits: int,
    calibration: Path | None,
    recipe: Path | None,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make a small model DST of the 16- or 32-bit model SRC (a directory or a Hugging Face id).

    Weights become codes of a few bits that point into small tables of values: fewer bytes to read, so more
    tokens per second. 4 bits lose little, 2 bits much. DST appears when it is complete; the same command goes
    on where an interrupted one stopped.

    \b
    Examples:
        pocketlm palettize path/to/llama-checkpoint my-model --bits 4
        pocketlm palettize meta-llama/Llama-3.2-1B my-model --bits 3.5
        pocketlm palettize path/to/model my-model --bits 3 --calibration some.txt
    """
    from pocketlm.palettize import palettize

    try:
        report = palettize(
            src,
            dst,
            bits=bits,
            embedding_bits=embedding_bits,
            calibration=calibration,
            recipe=recipe,
            progress=not as_json,
            overwrite=overwrite,
            threads=threads,
        )
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt("interrupted; the same command goes on from here") from stopped
    figures = {
        "path": str(report.path),
        "parameters": report.parameters,
        "bytes": report.bytes,
        "bits_per_weight_projections": report.bits_per_weight_projections,
        "bits_per_weight_all": report.bits_per_weight_all,
        "seconds": report.seconds,
        "resumed": report.resumed,
    }
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
        print_json({**figures, "tensors": tensors})
        return
    click.echo(
        f"{report.path}: {report.parameters:,} parameters in {human(report.bytes)}, {report.seconds:.1f} s"
    )
    if report.resumed:
        click.echo(f"{report.resumed} of {len(report.tensors)} tensors were there from an interrupted run")
    click.echo(f"bits per weight, projections  {report.bits_per_weight_projections:.3f}")
    click.echo(f"bits per weight, everything   {report.bits_per_weight_all:.3f}")
