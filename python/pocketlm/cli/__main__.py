"""``python -m pocketlm.cli``."""

from pocketlm.cli import main

main()
