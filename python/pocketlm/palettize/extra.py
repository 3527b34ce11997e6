"""Whether the packages of the extra ``train`` are there."""

from __future__ import annotations

from pocketlm.errors import UnsupportedError


def require_training(argument: str, *, optimiser: bool = False) -> None:
    """Refuses what ``argument`` asks for if JAX is not installed, or optax where an ``optimiser`` is needed.

    Raises:
        UnsupportedError: says what to install.
    """
    try:
        import jax  # noqa: F401

        if optimiser:
            import optax  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            f"{argument}: needs {error.name}; install pocketlm with the extra 'train': "
            "pip install 'pocketlm[train]'"
        ) from error
