"""``pocketlm generate``."""

from __future__ import annotations

import sys
from typing import Any

import click

from pocketlm.cli.common import (
    chosen,
    draft_option,
    json_option,
    open_model,
    options,
    print_json,
    runtime_options,
    sampling_options,
    text_of_argument,
    text_of_stdin,
    told_tokens,
)


@click.command(short_help="Continue a text.")
@click.argument("prompt", required=False)
@options(
    click.option(
        "--model", metavar="MODEL", help="Directory or Hugging Face id.  [default: the bundled model]"
    ),
    sampling_options,
    draft_option,
    click.option("--chat", is_flag=True, help="Treat PROMPT as a question, in the model's chat format."),
    click.option(
        "--logprobs", type=int, metavar="N", help="With --json: log-probabilities, with N alternatives each."
    ),
    click.option("--ignore-eos", is_flag=True, help="Go on past the model's own end."),
    click.option("--quiet", "-q", is_flag=True, help="No figures on standard error."),
    runtime_options,
    json_option,
)
def command(
    prompt: str | None,
    model: str | None,
    draft: str | None,
    chat: bool,
    quiet: bool,
    as_json: bool,
    threads: int | None,
    context: int | None,
    max_memory: int | None,
    precise: bool,
    no_recovery: bool,
    kv_dtype: str,
    **sampling: Any,
) -> None:
    """Continue PROMPT with a model.

    Prompt and text appear on standard output, the text as it is made; the figures that follow go to standard
    error. Without PROMPT, or with "-", the prompt is read from standard input.

    \b
    Examples:
        pocketlm generate "Once upon a time" --max-tokens 300 --seed 1
        pocketlm generate "Dear Sir," --model my-model --temperature 0.7
        pocketlm generate "What is a palette?" --chat --model my-chat-model
        pocketlm generate "The answer is" --max-tokens 3 --json
    """
    from pocketlm.errors import ParameterError

    if sampling["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json, which shows them")
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("give a PROMPT, or text on standard input")
    if prompt is None or prompt == "-":
        with text_of_stdin():
            prompt = sys.stdin.read().removesuffix("\n")
    else:
        prompt = text_of_argument("PROMPT", prompt)
    if not prompt:
        raise ParameterError(f"PROMPT is empty; give a word or more to {'answer' if chat else 'go on from'}")
    settings = chosen(sampling)
    lm = open_model(
        model,
        threads=threads,
        context=context,
        max_memory=max_memory,
        precise=precise,
        kv_dtype=kv_dtype,
        no_recovery=no_recovery,
        draft=draft,
    )
    with lm:
        if chat and not quiet and lm.tokenizer.template is None:
            click.echo("[this model knows no chat: it goes on with what you wrote]", err=True)
        stream = lm.session().stream_response(prompt, **settings) if chat else lm.stream(prompt, **settings)
        if as_json:
            completion = stream.result()
            print_json({"model": lm.name, "prompt": prompt, **completion.to_dict()})
            return
        if not chat:
            click.echo(prompt, nl=False)
        for chunk in stream:
            click.echo(chunk.text, nl=False)
        click.echo()
        completion = stream.result()
    if not quiet:
        timings, usage = completion.timings, completion.usage
        guessed = f"{usage.accepted_tokens} of them guessed, " if usage.accepted_tokens else ""
        click.echo(
            f"[{told_tokens(completion, lm.context)}, {timings.decode_tokens_per_second:.1f} tokens/s, "
            f"first after {timings.ttft_seconds:.3f} s, {guessed}seed {completion.seed}]",
            err=True,
        )
