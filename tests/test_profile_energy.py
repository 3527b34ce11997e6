"""Energy of a profile: read from counters or said to be assumed, and for each sort of step by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketlm.profile import run
from pocketlm.profile.energy import Energy, Meter
from pocketlm.profile.terminal import heading
from profiles import measured, models, quick


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("energy"))[1]


def test_energy_is_read_from_counters_or_said_to_be_assumed(tmp_path: Path) -> None:
    for domain, name in (("a:0", "package-0"), ("a:0:0", "core"), ("b:0", "package-1"), ("c", "psys")):
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "name").write_text(name)
        (tmp_path / domain / "energy_uj").write_text("999000000\n")
        (tmp_path / domain / "max_energy_range_uj").write_text("1000000000")
    meter = Meter(tmp_path)
    with meter.running():
        (tmp_path / "a:0" / "energy_uj").write_text("4000000")  # went around: 5 J
        (tmp_path / "b:0" / "energy_uj").write_text("1002000000")  # 3 J
        (tmp_path / "c" / "energy_uj").write_text("5000000000")
    meter._seconds = 2.0
    # A second door to the first package's counter, and one to it that cannot be read.
    for domain, joules in (("a-mmio:0", "4000001"), ("Z:0", "secret")):
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "name").write_text("package-0")
        (tmp_path / domain / "energy_uj").write_text(joules)
    assert [path.name for path in Meter(tmp_path)._packages] == ["a:0", "b:0"]
    energy = meter.energy(2)
    assert (energy.watts, energy.measured) == (4.0, True) and "RAPL" in energy.source
    (tmp_path / "broken").mkdir()
    for root in (tmp_path / "none", tmp_path / "broken"):
        assumed = Meter(root).energy(3)
        assert (assumed.watts, assumed.measured) == (18.0, False) and "estimate" in assumed.source
    assert Meter(tmp_path / "none").energy(2, 7.5).watts == 7.5


@pytest.mark.parametrize("counters", [True, False])
def test_each_step_has_its_own_power(model: Path, counters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if prefill ran on a thread more than decoding, and took twice its power."""
    quick(monkeypatch)
    asked: dict[Meter, int] = {}

    class Fake(Meter):
        def energy(self, threads: int, watts: float | None = None) -> Energy:
            if self._seconds:  # not where only ``watts`` is looked at
                asked[self] = threads
            if counters:
                return Energy(10.0 * len(asked), True, "counters")
            return super().energy(len(asked) or 1, watts)

    monkeypatch.setattr(run, "Meter", Fake)
    found = measured(model, threads=1)
    assert [*asked.values()] == [found.decode.threads, found.prefill.threads]
    powers = {"decode": 10.0, "prefill": 20.0} if counters else {"decode": 6.0, "prefill": 12.0}
    assert {step: energy.watts for step, energy in found.energy.items()} == powers
    for step, watts in powers.items():
        total = found.total(step)
        assert total.joules == pytest.approx(total.seconds * watts)
        assert sum(row.cost(step).joules for row in found.table) == pytest.approx(total.joules)
        assert found.to_dict()["energy"][step]["watts"] == watts
    assert found.what_if().joules_per_token == pytest.approx(found.decode.joules)
    # Once, since both come from the same place.
    (said,) = [line for line in heading(found) if line.startswith("power")]
    assert said.split("(")[0].strip() == "power    " + ", ".join(f"{s} {w:.0f} W" for s, w in powers.items())
    for step, watts in powers.items():
        (said,) = [line for line in heading(found, [step]) if line.startswith("power")]
        assert said.startswith(f"power    {watts:.0f} W (")


def test_one_power_is_said_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    found = measured(model, watts=7.5)
    assert {energy.watts for energy in found.energy.values()} == {7.5}
    (said,) = [line for line in heading(found) if line.startswith("power")]
    assert "estimate: 7.5 W, as given" in said
