"""A virtual environment for each runtime, so that their dependencies cannot disturb one another."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from benches.adapters.base import Adapter


def python(peer: Adapter, name: str, root: Path) -> Path:
    """The interpreter for ``peer``: this one, or an environment of its own in ``root``, made when missing."""
    if not peer.packages:
        return Path(sys.executable)
    target = root / name
    program, stamp = target / "bin" / "python", target / "installed.txt"
    wanted = (
        "\n".join([*peer.packages, *(f"{key}={value}" for key, value in peer.build_variables.items())]) + "\n"
    )
    if stamp.is_file() and stamp.read_text() == wanted:
        return program
    print(f"{peer.title}: installing {', '.join(peer.packages)}", flush=True)
    if not program.exists():
        venv.create(target, with_pip=True)
    command = [str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if peer.from_source:
        command += ["--no-binary", ",".join(peer.from_source)]
    log = target / "install.log"
    with log.open("w") as output:
        done = subprocess.run(
            ["nice", *command, *peer.packages],
            env=os.environ | dict(peer.build_variables),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{peer.title}: the installation failed; see {log}")
    stamp.write_text(wanted)
    return program
