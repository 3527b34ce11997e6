"""A virtual environment for each runtime, so that their dependencies cannot disturb one another."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from benches.adapters.base import Adapter


class CannotRunError(Exception):
    """Why a runtime cannot take part, in one line."""


def python(peer: Adapter, name: str, root: Path) -> Path:
    """The interpreter for ``peer``: this one, or an environment of its own in ``root``, made when missing.

    Raises:
        CannotRunError: its packages cannot be installed.
    """
    if not peer.packages:
        return Path(sys.executable)
    target = root / name
    program, stamp, failed = target / "bin" / "python", target / "installed.txt", target / "failed.txt"
    variables = (f"{key}={value}" for key, value in peer.build_variables.items())
    wanted = "\n".join([*peer.packages, *variables]) + "\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return program
    log = target / "install.log"
    reason = f"its installation failed; see {log}, and remove {failed} to try again"
    if failed.is_file() and failed.read_text() == wanted:
        raise CannotRunError(reason)
    print(f"{peer.title}: installing {', '.join(peer.packages)}", flush=True)
    if not program.exists():
        venv.create(target, with_pip=True)
    command = [str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if peer.from_source:
        # Not from pip's cache either: a wheel there may have been built with other variables.
        command += ["--no-cache-dir", "--no-binary", ",".join(peer.from_source)]
    with log.open("w") as output:
        done = subprocess.run(
            ["nice", *command, *peer.packages],
            env=os.environ | dict(peer.build_variables),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        failed.write_text(wanted)
        raise CannotRunError(reason)
    failed.unlink(missing_ok=True)
    stamp.write_text(wanted)
    return program
