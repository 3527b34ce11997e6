"""The commands, each in a file of its own, imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib

import click

COMMANDS = ("generate", "chat", "palettize", "perplexity", "inspect", "profile", "bench", "doctor")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command {cmd_name!r:.60}. {hint}", ctx)
        command: click.Command = importlib.import_module(f"pocketlm.cli.{cmd_name}").command
        return command


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from pocketlm import __version__

        click.echo(f"pocketlm {__version__}")
        ctx.exit()


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """Small language models on the CPU you have.

    Everything runs on this machine, in this process. A model comes along, so this works at once:

    \b
        pocketlm generate "Once upon a time"

    MODEL is always a directory (a Hugging Face checkpoint, or one made by `pocketlm palettize`) or a Hugging
    Face id, which is downloaded once, such as:

    \b
        pocketlm chat meta-llama/Llama-3.2-1B-Instruct
    """
