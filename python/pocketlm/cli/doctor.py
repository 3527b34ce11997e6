"""``pocketlm doctor``."""

from __future__ import annotations

from typing import Any

import click

from pocketlm.cli.common import human, json_option, print_json, say


@click.command(short_help="Show what pocketlm finds here, and whether it works.")
@click.option(
    "--quick",
    is_flag=True,
    help="Leave out the list of kernels, and what takes time: memory speed and the bundled model.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, quick: bool, as_json: bool) -> None:
    """Show what pocketlm finds on this machine, and whether it works.

    Prints the processor, the instruction sets that could be used and the one that is, the kernels chosen for
    it, threads, memory and its speed, and versions; then lets the bundled model say something. Put the output
    in a bug report.

    \b
    Example:
        pocketlm doctor
    """
    from pocketlm.doctor import examine

    found = examine(quick=quick)
    if as_json:
        print_json(found)
    else:
        _show(found, kernels=not quick)
    if found["problems"]:
        ctx.exit(1)


def _show(found: dict[str, Any], *, kernels: bool) -> None:
    for key in ("pocketlm", "python", "system", "machine", "processor"):
        say(f"{key:<12} {found[key]}")
    say(f"{'memory':<12} {human(found['memory_bytes'])}, {human(found['memory_available_bytes'])} available")
    if found["read_bandwidth_bytes_per_second"]:
        say(f"{'':<12} {human(found['read_bandwidth_bytes_per_second'])}/s reads")
    quota = f", quota {found['cpu_quota']:g}" if found["cpu_quota"] else ""
    say(
        f"{'threads':<12} {found['threads']} ({found['cpus']} processors, {found['affinity']} allowed{quota})"
    )
    levels = ", ".join(
        f"{name}{'' if available else ' (not here)'}" for name, available in found["levels"].items()
    )
    say(f"{'levels':<12} {levels}")
    say(f"{'in use':<12} {found['isa']}")
    if found["prompt_kernels"]:
        for title, place in (("9-16 rows", 0), ("prompts", 1)):
            choices = ", ".join(f"{kind} {names[place]}" for kind, names in found["prompt_kernels"].items())
            say(f"{title:<12} decoded to {choices}")
    for note in found["isa_notes"]:
        say(f"{'':<12} {note}")
    say(f"{'libraries':<12} {', '.join(f'{k} {v}' for k, v in found['libraries'].items())}")
    if kernels:
        click.echo("\nkernels in use")
        for row in filter(lambda row: row["chosen"], found["kernels"]):
            click.echo(f"  {row['op']:<24} {row['kind']:<9} {row['variant']:<11} {row['level']}")
    if found["bundled_model"]:
        click.echo(f"\nbundled model: {found['bundled_model']}")
    for problem in found["problems"]:
        say(f"PROBLEM: {problem}")
    if not found["problems"]:
        click.echo("\nNo problems found.")
