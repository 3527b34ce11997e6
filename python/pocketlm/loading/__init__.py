"""Opens models: a Hugging Face directory, pocketlm's own directory, or a hub id. One file per container."""

from pocketlm.loading.model import LoadedModel, open_model

__all__ = ["LoadedModel", "open_model"]
