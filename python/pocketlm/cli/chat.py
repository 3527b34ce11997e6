"""``pocketlm chat``."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from pocketlm.cli.common import as_json as json_text
from pocketlm.cli.common import (
    chosen,
    draft_option,
    json_option,
    open_model,
    options,
    runtime_options,
    sampling_options,
    text_of_argument,
    text_of_stdin,
    told_tokens,
    wrapped,
)

if TYPE_CHECKING:
    from rich.console import Console

    from pocketlm.generate.session import Session
    from pocketlm.generate.stream import Stream
    from pocketlm.model import LM

HELP = """\
/help          this list
/reset         forget the conversation, but not the instructions
/save FILE     write what was said to FILE, as JSON to read: no command takes it up again
/quit          leave (Ctrl-D does too)
Ctrl-C         stop the answer that is being written"""


@click.command(short_help="Talk with a model.")
@click.argument("model", required=False)
@options(
    click.option("--instructions", "-i", metavar="TEXT", help="How the model is to behave."),
    sampling_options,
    draft_option,
    runtime_options,
    json_option,
)
def command(
    model: str | None,
    instructions: str | None,
    draft: str | None,
    threads: int | None,
    context: int | None,
    max_memory: int | None,
    precise: bool,
    no_recovery: bool,
    kv_dtype: str,
    as_json: bool,
    **sampling: Any,
) -> int:
    """Talk with MODEL. Without MODEL, the bundled one goes on with your story.

    Type a line and read the answer as it is made; only what is new is computed in each turn. /help lists
    commands. Without a terminal each line of standard input is a turn or a command, and the
    status is 1 where one failed; with --json each answer is one line of JSON, what commands say goes to
    standard error, and a failure ends it.

    \b
    Example:
        pocketlm chat my-model -i "Answer in one sentence."
    """
    from rich.console import Console

    if instructions is not None:
        instructions = text_of_argument("--instructions", instructions)
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
    with lm, lm.session(instructions, **chosen(sampling)) as session:
        if as_json:
            said = _standard_error()
            for line in _lines():
                if line.startswith("/"):
                    if _obey(line, session, said):
                        break
                    continue
                completion = session.respond(line)
                click.echo(json_text({"prompt": line, **completion.to_dict()}))
                sys.stdout.flush()
            return 0
        failed = _talk(lm, session, Console(highlight=False, soft_wrap=True))
    return int(failed and not sys.stdin.isatty())  # who sits at a terminal has seen it


def _lines() -> Iterator[str]:
    with text_of_stdin():
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\n")


def _talk(lm: LM, session: Session, console: Console) -> bool:
    """Takes turns to the end; whether something failed meanwhile."""
    from pocketlm.errors import ContextLengthError, PocketlmError

    failed = False
    with_template = lm.tokenizer.template is not None
    if console.is_terminal:
        console.print(
            f"[bold]{lm.name}[/bold]  /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.",
            soft_wrap=False,
        )
        if not with_template:
            console.print(
                "[dim]This model knows no chat: it goes on with what you write.[/dim]", soft_wrap=False
            )
    for line in _prompts(console):
        try:
            if line.startswith("/"):
                if _obey(line, session, console):
                    break
                continue
            _answer(session.stream_response(line), console, lm.context)
        except PocketlmError as error:
            failed = True
            full = isinstance(error, ContextLengthError) and any(
                m.role != "system" for m in session.transcript
            )
            _complain(f"{error}{'; /reset forgets the conversation so far' if full else ''}")
    return failed


def _standard_error() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def _complain(message: str) -> None:
    """Says on standard error what failed; what was answered before comes first."""
    sys.stdout.flush()
    _standard_error().print(f"error: {message}", style="red", markup=False)


def _prompts(console: Console) -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from _lines()
        return
    prompt = "> "
    with suppress(ImportError):
        import readline  # noqa: F401  (editing and history of input)

        # Drawn by readline, or the arrow keys would erase it; \1 and \2 enclose what has no width.
        if console.color_system is not None:
            prompt = "\1\x1b[1;36m\2>\1\x1b[0m\2 "
    while True:
        try:
            console.print()
            line = input(prompt)
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        except UnicodeDecodeError:
            _complain("the line is not UTF-8 text")
            continue
        if line.strip():
            yield line


def _answer(stream: Stream, console: Console, context: int) -> None:
    with _cancelled_by_interrupt(stream), stream:
        for chunk in stream:
            console.print(chunk.text, end="", markup=False)
        console.print()
    completion = stream.completion
    if completion is not None and console.is_terminal:
        usage, timings = completion.usage, completion.timings
        stopped = ", stopped" if completion.finish_reason == "cancelled" else ""
        console.print(
            f"[dim]{told_tokens(completion, context)}, {timings.decode_tokens_per_second:.1f} tokens/s, "
            f"{usage.reused_tokens} of {usage.prompt_tokens} prompt tokens reused{stopped}[/dim]",
            soft_wrap=False,
        )


@contextmanager
def _cancelled_by_interrupt(stream: Stream) -> Iterator[None]:
    """Ctrl-C ends the answer, not the program."""
    try:
        before = signal.signal(signal.SIGINT, lambda *_: stream.cancel())
    except ValueError:  # not the main thread: there are no signals here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _obey(line: str, session: Session, console: Console) -> bool:
    """Runs a command; whether to leave."""
    name, _, argument = line.partition(" ")
    match name:
        case "/quit" | "/exit":
            return True
        case "/help":
            console.print("\n".join(wrapped(HELP.splitlines(), console.width)), markup=False)
        case "/reset":
            session.reset()
            console.print("The conversation is forgotten.")
        case "/save":
            _save(session, argument.strip(), console)
        case _:
            console.print(f"{name} is not a command; /help lists them.", markup=False)
    return False


def _save(session: Session, name: str, console: Console) -> None:
    from pocketlm.loading.files import as_path, write_whole

    if not name:
        console.print("Give a file: /save FILE")
        return
    turns = [{"role": m.role, "content": m.content} for m in session.transcript]
    path = as_path(os.fsdecode(name.encode("utf-8")), "/save")  # the same bytes, whatever the locale
    write_whole(path, json.dumps(turns, indent=2, ensure_ascii=False) + "\n")
    console.print(f"Saved {len(turns)} turns to {name}, as JSON to read.", markup=False)
