"""``pocketlm perplexity``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pocketlm.cli.common import (
    json_option,
    kv_option,
    open_model,
    options,
    print_json,
    recovery_option,
    threads_option,
)

if TYPE_CHECKING:
    from pocketlm.evaluate.compare import Comparison
    from pocketlm.evaluate.perplexity import Perplexity
    from pocketlm.model import LM


@click.command(short_help="Measure how well a model predicts a text.")
@click.argument("names", nargs=-1, metavar="[MODEL] FILE")
@options(
    click.option("--against", metavar="SOURCE", help="Compare with the model that MODEL was made from."),
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
        help="Score only the last N of each window: more context, more work.  [default: all of it]",
    ),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after this many tokens."),
    threads_option,
    kv_option,
    recovery_option,
    click.option("--precise", is_flag=True, help="Do not round activations to 8 bits."),
    json_option,
)
def command(
    names: tuple[str, ...],
    against: str | None,
    context: int,
    stride: int | None,
    limit: int | None,
    threads: int | None,
    precise: bool,
    no_recovery: bool,
    kv_dtype: Literal["f16", "int8"],
    as_json: bool,
) -> None:
    """Measure how well MODEL predicts the text in FILE. Lower is better.

    Perplexity is a figure per token, so it compares models that share a vocabulary; bits per byte compares
    any two. Without MODEL the bundled model is measured. The text is cut into windows of --context tokens;
    each token is scored once.

    With --against, what MODEL lost: the ratio of the perplexities, the divergence of the predictions (mean,
    and the value that one token in a thousand exceeds), how often both find the same token likeliest. Each
    stands with its standard error, from the scatter over windows.

    \b
    Examples:
        pocketlm perplexity my-model book.txt --context 512
        pocketlm perplexity my-model book.txt --against path/to/checkpoint
    """
    if len(names) not in (1, 2):
        raise click.UsageError("expected [MODEL] FILE")
    model, file = names[0] if len(names) == 2 else None, Path(names[-1])
    from pocketlm.bar import Bar
    from pocketlm.evaluate.windows import scored_bytes
    from pocketlm.loading.files import require_file, storage_errors

    with storage_errors(file):
        if file.is_dir():
            raise click.UsageError(f"FILE must be a text file; {file} is a directory")
        size = require_file(file).stat().st_size
    with (
        open_model(model, threads=threads, precise=precise, kv_dtype=kv_dtype, no_recovery=no_recovery) as lm,
        _opened(against, threads=threads, precise=precise) as source,
        Bar(
            total=size,
            desc="perplexity",
            unit="B",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=True if as_json else None,  # None: unless standard error is a terminal
        ) as bar,
    ):
        if limit is not None and not bar.disable:
            bar.reset(scored_bytes(lm.tokenizer, file, limit))
        settings: dict[str, Any] = {
            "context": context,
            "stride": stride,
            "limit": limit,
            "progress": lambda done: bar.update(done - bar.n),
        }
        if source is None:
            alone = lm.perplexity(file, **settings)
            result, lines = alone.to_dict(), _alone(alone)
        else:
            from pocketlm.evaluate.compare import compare

            both = compare(lm, source, file, **settings)
            result, lines = both.to_dict(), _both(both)
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(lines))


def _opened(name: str | None, **settings: Any) -> AbstractContextManager[LM | None]:
    return nullcontext() if name is None else open_model(name, **settings)


def _figure(value: float, error: float | None, digits: int = 4) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _alone(found: Perplexity) -> list[str]:
    return [
        f"tokens         {found.tokens}",
        f"bytes          {found.bytes}",
        f"perplexity     {_figure(found.perplexity, found.perplexity_se)}",
        f"bits per byte  {_figure(found.bits_per_byte, found.bits_per_byte_se)}",
        *_no_errors(found),
    ]


def _both(found: Comparison) -> list[str]:
    model, source = found.model, found.source
    rows = [
        ("", "model", "source"),
        (
            "perplexity",
            _figure(model.perplexity, model.perplexity_se),
            _figure(source.perplexity, source.perplexity_se),
        ),
        (
            "bits per byte",
            _figure(model.bits_per_byte, model.bits_per_byte_se),
            _figure(source.bits_per_byte, source.bits_per_byte_se),
        ),
    ]
    agreement = 100 * found.top1_agreement
    error = found.top1_agreement_se
    return [
        f"tokens            {model.tokens} in {model.windows} window{'' if model.windows == 1 else 's'}, "
        f"{model.bytes} bytes",
        *(f"{name:16}  {left:20}  {right}".rstrip() for name, left, right in rows),
        f"perplexity ratio  {_figure(found.perplexity_ratio, found.perplexity_ratio_se, 5)}",
        f"mean KL           {_figure(found.kl_mean, found.kl_mean_se, 6)} nats",
        f"99.9 % KL         {_figure(found.kl_p999, found.kl_p999_se)} nats",
        f"same top token    {_figure(agreement, None if error is None else 100 * error, 2)} %",
        *_no_errors(model),
    ]


def _no_errors(found: Perplexity) -> list[str]:
    return [] if found.windows > 1 else ["no standard errors: there is one window only"]
