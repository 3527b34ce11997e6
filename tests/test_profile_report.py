"""The report and the command: what is embedded, what is escaped, what is said when something is missing."""

from __future__ import annotations

import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from palettizing import full_disk, names
from pocketlm.cli import run
from pocketlm.errors import MissingFileError, ParameterError, StorageError, UnsupportedError
from pocketlm.palettize.recipe import recipe_kinds
from pocketlm.profile import Profile, machine
from pocketlm.profile.html import embedded, page, report_data
from pocketlm.profile.places import check_places
from profiles import measured, models, quick, with_names

EVIL = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">\u2028&lt;'


class Structure(HTMLParser):
    """Elements of a page, and the text of its scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def structure(text: str) -> Structure:
    found = Structure()
    found.feed(text)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("report"))[1]


@pytest.fixture(scope="module")
def found(model: Path) -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        profile = measured(model)
        profile.measure_kinds()
    return profile


def test_the_page_holds_the_profile(found: Profile) -> None:
    seen = structure(page(found.model, report_data(found), "/* plotly */"))
    data = json.loads(seen.scripts[0])
    assert data == json.loads(json.dumps(report_data(found)))
    assert data["rows"] == json.loads(json.dumps(found.table.to_dicts())) and len(data["matrices"]) == len(
        found.matrices
    )
    # What the page computes is what Python computes: the same sums over the same numbers.
    what = found.what_if({"ffn.*": "p2"})
    size, decode = data["base"]["other_bytes"], data["base"]["decode"]
    for matrix in data["matrices"]:
        kind = what.recipe[matrix["name"]]
        size += matrix["bytes"][kind]
        decode += matrix["decode"][kind] - matrix["decode"][matrix["current"]]
    assert size == what.bytes and decode == pytest.approx(what.decode_seconds)


def test_the_page_needs_nothing_from_outside(found: Profile, tmp_path: Path) -> None:
    path = found.to_html(tmp_path / "report.html")
    before = path.read_bytes()
    with full_disk(), pytest.raises(StorageError, match=r"report\.html: File too large"):
        found.to_html(path)
    assert path.read_bytes() == before and names(tmp_path) == ["report.html"]
    seen = structure(path.read_text(encoding="utf-8"))
    assert not [tag for tag, attributes in seen.tags if attributes.get("src") or attributes.get("href")]
    assert "link" not in [tag for tag, _ in seen.tags]
    (policy,) = (a["content"] for _, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy) and "http" not in str(policy)
    # No placeholder is left; plotly is inside.
    assert not re.search(r"@(title|style|data|scripts)@", page("", {}, ""))
    assert any("plotly.js" in script[:500] for script in seen.scripts)


def test_names_cannot_leave_their_place(found: Profile) -> None:
    plain = structure(page("x", report_data(found), ""))
    evil = with_names(found, EVIL, EVIL)
    text = page(evil.model, report_data(evil), "")
    seen = structure(text)
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]
    assert json.loads(seen.scripts[0])["model"] == EVIL
    assert "<img" not in text
    assert not set(embedded({"a": EVIL})) & set("<>&\u2028")
    with pytest.raises(ValueError):
        embedded(float("nan"))


def test_what_is_missing_is_said(
    found: Profile, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for path, error in ((tmp_path / "no" / "r.html", MissingFileError), (tmp_path, StorageError)):
        with pytest.raises(error):
            found.to_html(path)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'pocketlm\[report\]'"):
        found.to_html(tmp_path / "r.html")
    assert run(["profile", str(model), "--html", str(tmp_path / "r.html")]) == 1
    assert "pocketlm[report]" in capsys.readouterr().err and not (tmp_path / "r.html").exists()


def test_places_that_may_not_be_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old.html"
    old.write_text("")
    check_places({"--html": old, "--recipe": tmp_path / "new.json", "--other": None})
    check_places({"--html": Path("/dev/null"), "--recipe": Path("/dev/null")})
    monkeypatch.setattr(os, "access", lambda path, _: path != old)  # as if not the superuser asked
    with pytest.raises(StorageError, match=r"^--html: .*old\.html: Permission denied"):
        check_places({"--html": old})
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(StorageError, match=r"^--recipe: .*new\.json: Permission denied"):
        check_places({"--recipe": tmp_path / "new.json"})
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises((ParameterError, StorageError), match="round"):
        check_places({"--html": tmp_path / "round"})


def call(capsys: Any, *args: str) -> tuple[int, str, str]:
    status = run(["profile", *args])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    quick(monkeypatch)
    few = (str(model), "--prompt", "40", "--context", "9", "--repeats", "1", "--no-cache")
    status, out, _ = call(capsys, *few)
    assert status == 0 and "layers.*.ffn.down" in out and "prefill" in out
    table = out.split("\n\n", 1)[1]
    assert all(len(line) <= 80 for line in table.splitlines())
    status, out, _ = call(
        capsys, *few, "--step", "decode", "--by", "op", "--filter", "ffn.*", "--sort", "time", "--top", "3"
    )
    assert status == 0 and "layers.0.attn" not in out and "and " in out and " more " in out
    recipe, report = tmp_path / "recipe.json", tmp_path / "report.html"
    status, out, _ = call(
        capsys, *few, "--what-if", "ffn.*=p2", "--recipe", str(recipe), "--html", str(report), "--json"
    )
    value = json.loads(out)
    assert status == 0 and report.stat().st_size > 1 << 20
    assert recipe_kinds(json.loads(recipe.read_text()), "x") == value["what_if"]["recipe"]
    again = call(capsys, *few, "--what-if", str(recipe), "--json")[1]
    assert json.loads(again)["what_if"]["recipe"] == value["what_if"]["recipe"]
    assert value["rows"][0]["name"] == "embed" and value["decode"]["tokens_per_second"] > 0
    status, out, _ = call(capsys, *few, "--what-if", "ffn.*=p2", "--what-if", "head=p4")
    assert status == 0 and "tokens/s" in out.split("what if")[1]
    assert "not known: no sensitivity to p2" in out


def test_the_last_change_decides(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    quick(monkeypatch)
    few = (str(model), "--prompt", "40", "--context", "9", "--repeats", "1", "--no-cache", "--json")

    def kinds(*changes: str) -> dict[str, str]:
        status, out, _ = call(capsys, *few, *(word for change in changes for word in ("--what-if", change)))
        assert status == 0
        found: dict[str, str] = json.loads(out)["what_if"]["recipe"]
        return found

    down = "model.layers.0.mlp.down_proj.weight"
    # A pattern that is given again decides by its last place, not by its first.
    assert kinds("ffn.*=p2v", "ffn.down=p4", "ffn.*=p8")[down] == "p8"
    assert kinds("ffn.*=p2v", "ffn.down=p4")[down] == "p4"
    # Bits are those of palettize's --kinds.
    assert kinds("ffn.*=4", "ffn.down=2")[down] == "p2v"
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({down: "p3"}))
    assert kinds("ffn.*=p2v", str(recipe))[down] == "p3"
    assert kinds(str(recipe), "ffn.*=p2v", str(recipe), "ffn.*=p2v")[down] == "p2v"


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--what-if", "ffn.*"], 2, "PATTERN=KIND"),
        (["--what-if", "x" * 5000], 2, "PATTERN=KIND"),
        (["--what-if", "x" * 5000 + "=p2"], 2, "matches no operation"),
        (["--what-if", "ffn.*=p9"], 2, "--what-if: 'ffn.*' is to be 'p9'"),
        (["--what-if", "ffn.*=5"], 2, "or bits: 2, 3, 4, 8"),
        (["--what-if", "ffn.*=p2w"], 2, "the nearest is p2v"),
        (["--what-if", "ffn.*=p22"], 2, "the nearest is p2v"),
        (["--what-if", "nothing=p2"], 2, "--what-if: 'nothing' matches no operation"),
        (["--what-if", "ffn.*=p2", "--what-if", "norm=p4"], 2, "--what-if: 'norm' cannot be p4"),
        (["--what-if", "ffn.dwon=p2"], 2, "nearest is 'ffn.down'"),
        (["--filter", "nothing.*"], 2, "--filter: 'nothing.*' matches no operation"),
        (["--columns", "bond"], 2, "the nearest is 'bound'"),
        (["--recipe", "r.json"], 2, "--what-if"),
        (["--what-if", "ffn.*=p2", "--recipe", "no/r.json"], 1, "--recipe: no: no such directory"),
        (["--what-if", "ffn.*=p2", "--recipe", "r", "--html", "./r"], 2, "--recipe: r is the file of --html"),
        (["--html", "no/r.html"], 1, "--html: no: no such directory"),
        (["--html", "."], 2, "--html: . is a directory"),
        (["--prompt", "0"], 2, "prompt"),
        (["--prompt", "600"], 1, "prompt: 600 tokens do not fit"),
        (["--prompt", "5000"], 1, "prompt: 5000 tokens do not fit"),
        (["--context", "600"], 1, "context: 600 tokens and the one"),
        (["--context", "5000"], 1, "context: 5000 tokens and the one"),
        (["--sensitivities", "nowhere.json"], 1, "nowhere.json"),
        (["--watts", "-3"], 2, "watts"),
    ],
)
def test_the_command_refuses(
    args: list[str],
    status: int,
    words: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    def measure(*_: Any) -> Any:
        raise AssertionError("something was measured before what is wrong was said")

    monkeypatch.setattr(machine.Machine, "measure", measure)
    monkeypatch.chdir(tmp_path)
    few = ["--prompt", "9", "--context", "9", "--repeats", "1", "--no-cache"]
    found, _, err = call(capsys, str(model), *few, *args)
    assert found == status and words in err and err.count("\n") == 1, err
