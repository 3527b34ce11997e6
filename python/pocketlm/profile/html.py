"""The report: one HTML file with everything in it, to look at without a network."""

from __future__ import annotations

import dataclasses
import html
import json
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from pocketlm.errors import UnsupportedError
from pocketlm.loading.files import as_path, write_whole
from pocketlm.palettize.recipe import KINDS
from pocketlm.profile.profile import Profile

_WEB = Path(__file__).parent / "web"
_SCRIPTS = ("model.js", "then.js", "table.js", "graph.js", "charts.js", "whatif.js", "main.js")


def require_plotly() -> str:
    """The source of plotly.js.

    Raises:
        UnsupportedError: the extra ``report`` is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UnsupportedError("the HTML report needs plotly: pip install 'pocketlm[report]'") from error
    source: str = get_plotlyjs()
    return source


def write_html(profile: Profile, path: str | PathLike[str]) -> Path:
    """Writes the report of a profile. See :meth:`Profile.to_html`."""
    target = as_path(path, "path")
    plotly = require_plotly()
    text = page(profile.model, report_data(profile), plotly)
    write_whole(target, text)
    return target


def page(title: str, data: dict[str, Any], plotly: str) -> str:
    """The whole file. Whatever comes from the model goes through ``data``, which the page shows as text
    only."""
    scripts = [plotly, *(_web(name) for name in _SCRIPTS)]
    return (
        _web("report.html")
        .replace("@title@", html.escape(title))
        .replace("@style@", _web("report.css"))
        .replace("@data@", embedded(data))
        .replace("@scripts@", "\n".join(f"<script>{_script(source)}</script>" for source in scripts))
    )


def embedded(data: Any) -> str:
    """JSON that nothing in it can end or escape from its script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def report_data(profile: Profile) -> dict[str, Any]:
    """What the page is made of: the profile, what each kind of each tensor would cost, what predictions
    start from."""
    head = profile.graph.head()
    return {
        **profile.to_dict(),
        # The operation whose multiply-adds count twice as soon as its matrix is palettized.
        "two_terms": head.name if head is not None and not profile.precise else None,
        "kinds": list(KINDS),
        "matrices": [
            {**dataclasses.asdict(matrix), "current": matrix.current, "elements": matrix.elements}
            for matrix in profile.matrices
        ],
        "base": dataclasses.asdict(profile.base),
    }


@cache
def _web(name: str) -> str:
    return (_WEB / name).read_text(encoding="utf-8")


def _script(source: str) -> str:
    """Source that cannot end its element early."""
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")
