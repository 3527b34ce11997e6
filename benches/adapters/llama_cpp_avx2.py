"""llama.cpp built for processors with AVX2 and no more."""

from __future__ import annotations

from benches.adapters import llama_cpp

_FLAGS = "NATIVE=OFF AVX=ON AVX2=ON FMA=ON F16C=ON BMI2=ON"


class Peer(llama_cpp.Peer):
    """See :class:`llama_cpp.Peer`."""

    title = "llama-cpp-python (AVX2)"
    build_variables = {  # noqa: RUF012
        "CMAKE_ARGS": " ".join(f"-DGGML_{flag}" for flag in _FLAGS.split())
        + " -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
    }
    forms_of = "llama_cpp"
