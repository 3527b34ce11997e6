"""Interpreters of the graph in Python: ``reference`` (NumPy, the oracle) and ``jax`` (gradients, extra
``train``)."""
