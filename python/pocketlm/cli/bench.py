"""``pocketlm bench``."""

from __future__ import annotations

from typing import Literal

import click

from pocketlm.cli.common import (
    adapter_of,
    human,
    json_option,
    kv_option,
    options,
    print_json,
    recovery_option,
    threads_option,
)


@click.command(short_help="Measure how fast a model runs here.")
@click.argument("model", required=False)
@options(
    click.option(
        "--prompt",
        type=click.IntRange(1),
        metavar="N",
        help="Tokens of the prompt to read.  [default: 512, or what fits]",
    ),
    click.option(
        "--generate",
        default=128,
        show_default=True,
        type=click.IntRange(1),
        metavar="N",
        help="Tokens to generate.",
    ),
    click.option(
        "--context",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        metavar="N",
        help="Tokens that stand before those generated.",
    ),
    click.option(
        "--batch",
        default=1,
        show_default=True,
        type=click.IntRange(1, 64),
        metavar="N",
        help="Texts to generate at once, up to 64.",
    ),
    click.option(
        "--num-speculative-tokens",
        "guesses",
        default=0,
        show_default=True,
        type=click.IntRange(0, 16),
        metavar="N",
        help="Most tokens guessed in a step, up to 16.",
    ),
    threads_option,
    kv_option,
    recovery_option,
    click.option("--precise", is_flag=True, help="Do not round activations to 8 bits."),
    json_option,
)
def command(
    model: str | None,
    prompt: int | None,
    generate: int,
    context: int,
    batch: int,
    guesses: int,
    threads: int | None,
    precise: bool,
    no_recovery: bool,
    kv_dtype: Literal["f16", "int8"],
    as_json: bool,
) -> None:
    """Measure how fast MODEL runs here. Without MODEL: the bundled model.

    Generating text is bound by memory: each step reads all weights once. So beside tokens per second stand
    the bytes of weights read per second, and the rate at which the threads read the weights where they lie,
    doing nothing else, measured before and after: in memory, or in the processor's caches.

    \b
    Example:
        pocketlm bench my-model --prompt 512 --generate 128
    """
    from pocketlm.bench import run_bench

    found = run_bench(
        model,
        prompt=prompt,
        generate=generate,
        context=context,
        batch=batch,
        num_speculative_tokens=guesses,
        threads=threads,
        precise=precise,
        kv_dtype=kv_dtype,
        adapter=adapter_of(no_recovery),
    )
    if as_json:
        print_json(found.to_dict())
        return
    share = found.decode_bytes_per_second / found.read_bandwidth_bytes_per_second
    click.echo(f"load                 {found.load_seconds:.3f} s")
    click.echo(f"first token          {found.ttft_seconds:.3f} s after a prompt of {found.prompt} tokens")
    click.echo(f"prefill              {found.prefill_tokens_per_second:.1f} tokens/s")
    each = f", {found.decode_tokens_per_second / batch:.1f} for each of {batch} texts" if batch > 1 else ""
    click.echo(
        f"decode               {found.decode_tokens_per_second:.1f} tokens/s after {context} tokens{each}"
    )
    click.echo(
        f"weights              {human(found.weight_bytes)} a step, {human(found.decode_bytes_per_second)}/s"
    )
    alone, memory = (
        f"{human(rate)}/s"
        for rate in (found.read_bandwidth_bytes_per_second, found.memory_bandwidth_bytes_per_second)
    )
    click.echo(f"reading alone        {alone} of weights; decode uses {share:.0%}")
    held = ": the processor's caches hold the weights, not the memory" if found.cached else ""
    click.echo(f"memory               {memory}{held}")
    if found.adapter_bytes:
        click.echo(f"recovery adapter     {human(found.adapter_bytes)} of them")
    click.echo(
        f"bits per weight      {found.bits_per_weight_projections:.3f} of the projections, "
        f"{found.bits_per_weight_all:.3f} of everything"
    )
    click.echo(f"peak memory          {human(found.peak_memory_bytes)}")
    if found.others_cpu is not None:
        click.echo(f"other processes      took {found.others_cpu:.0%} of the machine meanwhile")
    click.echo(f"same tokens again    {'yes' if found.agrees else 'no: something is wrong here'}")
    click.echo(f"threads, kernels     {found.threads}, {found.isa}; cache {found.kv_dtype}")
