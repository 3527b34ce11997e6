"""Makes palettized models: codes of 2 to 8 bits into small codebooks, chosen to lose little."""

from pocketlm.palettize.report import Report, TensorReport
from pocketlm.palettize.run import palettize

__all__ = ["Report", "TensorReport", "palettize"]
