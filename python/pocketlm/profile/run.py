"""Runs a model's steps and makes a profile of what was measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal

import numpy as np

from pocketlm._core import Engine
from pocketlm.checks import flag, integer
from pocketlm.clock import Clock
from pocketlm.describe import describe
from pocketlm.errors import ParameterError
from pocketlm.graph import Graph, Slice
from pocketlm.loading.check import stored_name
from pocketlm.model import LM
from pocketlm.profile import measure
from pocketlm.profile.energy import Energy, Meter
from pocketlm.profile.machine import Machine
from pocketlm.profile.names import place
from pocketlm.profile.opened import check_room, opened
from pocketlm.profile.profile import Profile, Total
from pocketlm.profile.rows import Cost, Row, Table
from pocketlm.profile.sensitivity import read_sensitivities
from pocketlm.profile.stand_in import Setting
from pocketlm.profile.work import Load, matrix, work

DEFAULT_PROMPT, DEFAULT_CONTEXT, DEFAULT_REPEATS = 512, 256, 5
MOST_CONTEXT = 8192  # tokens in the cache of a model's double, which must be computed before it is measured


def profile(
    model: LM | str | PathLike[str] | None = None,
    *,
    prompt: int | None = None,
    context: int | None = None,
    repeats: int = DEFAULT_REPEATS,
    threads: int | None = None,
    precise: bool = False,
    sensitivities: Mapping[str, Mapping[str, float]] | str | PathLike[str] | None = None,
    watts: float | None = None,
    cache: bool = True,
    adapter: Literal["recovery"] | None = "recovery",
) -> Profile:
    """Measures where a model's bytes and time go on this machine.

    Args:
        model: an :class:`~pocketlm.LM`, or what :func:`pocketlm.load` takes; ``None`` is the bundled model.
        prompt: tokens of the prefill; 512 where the context has room.
        context: tokens in the cache when decoding; 256 where the context has room.
        repeats: prefills to measure at least, and twenty times as many decode steps; of a small model as
            many as take a second.
        threads, precise, adapter: as for :func:`pocketlm.load`; not with an LM, which has its own.
        sensitivities: ``{tensor: {kind: nats per token}}`` or a JSON file of it; else ``sensitivity.json``
            in the model's directory, if there is one.
        watts: the processor's power while it works, where no counter can be read.
        cache: keep measurements of products for later profiles, in the user's cache directory.

    Raises:
        ParameterError: an argument is out of range.
        ContextLengthError: ``prompt`` or ``context`` do not fit the model.
        As :func:`pocketlm.load`.
    """
    for name, value, least in (("prompt", prompt, 1), ("context", context, 0), ("repeats", repeats, 1)):
        if value is not None:
            integer(name, value, least, 1 << 30)
    for name, switch in (("precise", precise), ("cache", cache)):
        flag(name, switch)
    Meter().energy(1, watts)  # complains early
    if not isinstance(model, LM):
        with opened(
            model, prompt=prompt, context=context, threads=threads, precise=precise, adapter=adapter
        ) as lm:
            return _profile(lm, prompt, context, repeats, sensitivities, watts, cache)
    if threads is not None or precise or adapter is None:
        raise ParameterError("threads, precise and adapter belong to the LM: give them to pocketlm.load")
    return _profile(model, prompt, context, repeats, sensitivities, watts, cache)


def _profile(
    lm: LM,
    prompt: int | None,
    context: int | None,
    repeats: int,
    sensitivities: Any,
    watts: float | None,
    cache: bool,
) -> Profile:
    loaded = lm.loaded
    if loaded is None or not isinstance(lm.engine, Engine):
        raise ParameterError("model: this LM was not made by pocketlm.load")
    lm._check_open()
    graph, store, engine = loaded.graph, loaded.store, lm.engine
    prompt = min(DEFAULT_PROMPT, lm.context) if prompt is None else prompt
    context = min(DEFAULT_CONTEXT, lm.context - 1) if context is None else context
    check_room(prompt, context, lm.context)
    tensors = {stored_name(store, op.weight) for op in graph.ops if matrix(store, op)}  # type: ignore[attr-defined]
    losses = read_sensitivities(sensitivities, loaded.path, tensors)
    machine = Machine.measure(engine.isa, engine.threads)
    clock, own = Clock.started(), time.process_time()
    meters = {"decode": Meter(), "prefill": Meter()}
    steps = {"decode": Load.decode(context), "prefill": Load.prefill(prompt, engine.max_rows)}
    chunk = steps["prefill"].chunks[0][1]
    try:
        times = {
            "decode": measure.decode_times(engine, context, measure.DECODE_STEPS * repeats, meters["decode"]),
            "prefill": measure.prefill_times(engine, steps["prefill"], repeats, meters["prefill"]),
        }
        threads = {"decode": engine.step_threads(1), "prefill": engine.step_threads(chunk)}
    finally:
        engine.hold_threads(False)
    others = None if clock is None else clock.others(time.process_time() - own)
    machine = machine.better(Machine.measure(engine.isa, engine.threads))  # whatever ran beside it
    energy = {step: meter.energy(threads[step], watts) for step, meter in meters.items()}
    phases = engine.phases()
    names = [*(op.name for op in graph.ops), measure.SAMPLE, measure.DISPATCH]
    tail = {name: bool(phase["tail"]) for phase in phases for name, _ in phase["members"]}
    elements = {op.name: op.weight.shape[0] * op.weight.shape[1] for op in graph.linears()}
    costs: dict[str, dict[str, Cost]] = {}
    totals: dict[str, Total] = {}
    for step, load in steps.items():
        amounts = work(graph, store, load, tail, engine.kv_dtype, precise=lm.precise)
        divided = measure.shares(phases, names, elements if step == "prefill" else None)
        costs[step] = _costs(times[step], divided, names, amounts, machine, energy[step])
        totals[step] = _total(times[step], load, threads[step], amounts, energy[step])
    fused = _fused(phases)
    rows = []
    for at, name in enumerate(names):
        op = graph.ops[at] if at < len(graph.ops) else None
        info = matrix(store, op) if op is not None else None
        layer, site = place(name)
        kind = info.kind if info else None
        rows.append(
            Row(
                name=name,
                layer=layer,
                site=site,
                op=op.kind if op else name,
                tensor=info.name if info else None,
                kind=kind,
                shape=op.weights()[0].shape[:2] if op and info else None,  # type: ignore[arg-type]
                bits=info.bits if info else None,
                weight_bytes=info.bytes if info else 0,
                fused=fused.get(name, ()),
                inputs=tuple(_whole(graph, i) for i in op.inputs()) if op else (),
                decode=costs["decode"][name],
                prefill=costs["prefill"][name],
                sensitivity=losses.get(info.name, {}).get(kind or "") if info else None,
            )
        )
    return Profile(
        model=lm.name,
        machine=machine,
        energy=energy,
        description=describe(graph, store),
        context=context,
        prompt=prompt,
        table=Table(rows),
        decode=totals["decode"],
        prefill=totals["prefill"],
        sensitivities=losses,
        graph=graph,
        setting=Setting(
            context=min(context, MOST_CONTEXT),
            chunk=chunk,
            decode_threads=threads["decode"],
            prefill_threads=threads["prefill"],
            precise=lm.precise,
            kv_dtype=engine.kv_dtype,
        ),
        keep_times=cache,
        others_cpu=others,
    )


def _whole(graph: Graph, at: int) -> str:
    """The name of an operation; of a slice, which is only a place in another's result, that of the other."""
    while isinstance(op := graph.ops[at], Slice):
        at = op.x
    return op.name


def _costs(
    times: measure.Times,
    divided: measure.Floats,
    names: list[str],
    amounts: Mapping[str, tuple[int, int]],
    machine: Machine,
    energy: Energy,
) -> dict[str, Cost]:
    """The costs of every row: its part of the steps with the clock, as a part of those without it."""
    each = times.phases @ divided * (times.plain[times.quiet].mean() / times.timed[times.quiet].mean())
    seconds = each[times.quiet].mean(axis=0)
    low, high = np.quantile(each, [0.25, 0.75], axis=0)
    whole = float(seconds.sum())
    found = {}
    for at, name in enumerate(names):
        read, macs = amounts.get(name, (0, 0))
        time = float(seconds[at])
        rate = read / time if time else 0.0
        found[name] = Cost(
            seconds=time,
            spread=float(high[at] - low[at]),
            bytes=read,
            macs=macs,
            share=time / whole if whole else 0.0,
            bytes_per_second=rate,
            bandwidth_share=rate / machine.read_bandwidth,
            bound=machine.bound(read, macs),
            roof_seconds=machine.roof_seconds(read, macs),
            joules=time * energy.watts,
        )
    return found


def _total(
    times: measure.Times, load: Load, threads: int, amounts: Mapping[str, tuple[int, int]], energy: Energy
) -> Total:
    seconds = float(times.plain[times.quiet].mean())
    low, high = np.quantile(times.plain, [0.25, 0.75])
    return Total(
        seconds=seconds,
        spread=float(high - low),
        timed_seconds=float(times.timed[times.quiet].mean()),
        timing_cost=times.clock,
        steps=len(times.plain),
        threads=threads,
        tokens=load.tokens,
        tokens_per_second=load.tokens / seconds,
        bytes=sum(read for read, _ in amounts.values()),
        macs=sum(macs for _, macs in amounts.values()),
        joules=seconds * energy.watts,
    )


def _fused(phases: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """For each operation the others of its phases, in order."""
    found: dict[str, dict[str, None]] = {}
    for phase in phases:
        members = [name for name, _ in phase["members"]]
        for name in members:
            found.setdefault(name, {}).update(dict.fromkeys(other for other in members if other != name))
    return {name: tuple(others) for name, others in found.items()}
