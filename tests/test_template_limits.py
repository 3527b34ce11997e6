"""Chat templates that are out for time and memory: refused before they have either."""

from __future__ import annotations

import time

import pytest

from pocketlm.errors import TemplateError
from pocketlm.template import ChatTemplate

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>"}]


@pytest.mark.parametrize(
    ("source", "part"),
    [
        # Numbers.
        ("{{ 1 | round(-30000000) }}", "precision"),
        ("{{ messages | length | round(30000000, 'floor') }}", "precision"),
        ("{% autoescape 1 | round(-30000000) %}{% endautoescape %}", "autoescape"),
        ("{{ ('f' * 2000000) | int(0, 16) }}", "number"),
        ("{{ ('1' * 2000000) | float }}", "number"),
        ("{{ ('f' * 2000) | int(0, 16) }}", "bits"),
        ("{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "bits"),
        ("{{ range(0, 2305843009213693951 * 9, 2305843009213693951) | list }}", "bound"),
        # Formats.
        ("{{ '%(a)2000000000d' % {'a': 1} }}", "width"),
        ("{{ '%(a(b))2000000000d' % {'a(b)': 1} }}", "parentheses"),
        ("{{ '%(a)2000000000d' | format(a=1) }}", "width"),
        ("{{ ['%2000000000d'] | format(1) }}", "width"),
        ("{{ ('%9999d' * 20000) % ((1,) * 20000) }}", "characters"),
        ("{{ ('%(a)s' * 20000) % {'a': 'a' * 400000} }}", "characters"),
        ("{{ ('{0:9999}' * 100000).format(1) }}", "bytes"),
        ("{{ ('{0}' * 100000).format('a' * 4000000) }}", "bytes"),
        ("{{ '{0!r}'.format(['a' * 4000000] * 20) }}", "characters"),
        ("{{ strftime_now('%500000000d' ~ 'x' * 4000000) }}", "format"),
        # Bytes, and methods that make much of little or take long.
        ("{{ '%500000000d'.encode() % 1 }}", "unsafe"),
        ("{{ (1).to_bytes(500000000, 'big') }}", "unsafe"),
        ("{{ {}.fromkeys('ab', 1) }}", "unsafe"),
        ("{{ dict.update(messages[0], {'role': 'x'}) }}", "unsafe"),
        ("{{ ({}.keys() - []).union(range(9)) }}", "unsafe"),
        ("{% set m = '<!---->' | safe %}{{ m.striptags() }}", "unsafe"),
        ("{{ ('a' * 4000000).rfind('a' * 1000 ~ 'b' ~ 'a' * 1000) }}", "search"),
        ("{{ ('a' * 4000000).strip('b' * 2000 ~ 'a') }}", "search"),
        ("{{ ('a' * 4000000) | trim('b' * 2000 ~ 'a') }}", "search"),
        ("{{ ('a ' * 200000).split() }}", "entries"),
        ("{{ ('a,' * 200000).rsplit(',') }}", "entries"),
        ("{{ ('a\r' * 200000).splitlines() }}", "entries"),
        # Filters.
        ("{{ ('a\r' * 100000) | indent(4000) }}", "characters"),
        ("{{ 1111111111 | replace('1', 'x' * 4000000) }}", "characters"),
        ("{{ ('a-' * 100000) | title }}", "title"),
        ("{{ ('a' * 4000000) | list }}", "entries"),
        ("{{ ('a' * 99999) | map('replace', 'a', 'a' * 4000000) | sort }}", "bytes"),
        ("{{ ([1] * 20000) | tojson(separators=('a' * 400000, ':')) }}", "separator"),
        # Lists that refer to one text many times.
        ("{{ ['a' * 4000000] * 2 }}", "characters"),
        ("{{ ['a' * 4000000] * 20000 == [] }}", "characters"),
        ("{{ (['a' * 4000000] * 2) | upper }}", "characters"),
        ("{{ '' ~ ['a' * 4000000, 'a' * 4000000] }}", "characters"),
        ("{{ ['a' * 4000000, 'a' * 4000000] | tojson }}", "characters"),
        ("{{ raise_exception(['a' * 4000000, 'a' * 4000000]) }}", "characters"),
        ("{{ ('%s' * 2) % (('a' * 4000000,) * 2) }}", "characters"),
        *(
            (
                "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = "
                + doubled
                + " %}{% endfor %}{{ n.x }}",
                "entries",
            )
            for doubled in (
                "dict(a=n.x, b=n.x)",
                "['', ''] | map('default', n.x, true) | list",
                "['', ''] | map(attribute='q', default=n.x) | list",
            )
        ),
        # Of all that is made together.
        (
            "{% set n = namespace(x=[]) %}"
            "{% for i in range(99) %}{% set n.x = n.x + ['a' * 4000000] %}{% endfor %}",
            "bytes",
        ),
        ("{% set s = 'a' * 4000000 %}" + "{% set a = s[1:] %}" * 99, "bytes"),
        ("{% set a = [1] * 99999 %}" * 99, "bytes|seconds"),
        ("".join(f"{{% set a{i} = 1 %}}" for i in range(1001)), "variables"),
    ],
)
def test_what_is_made_is_bounded_beforehand(source: str, part: str) -> None:
    began = time.thread_time()
    with pytest.raises(TemplateError, match=part):
        ChatTemplate(source).render(TALK)
    assert time.thread_time() - began < 5


def test_a_namespace_does_not_print_what_it_holds() -> None:
    source = "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = namespace(a=n.x, b=n.x) %}"
    assert ChatTemplate(source + "{% endfor %}{{ n.x }}").render([]) == "<Namespace>"


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.sandbox.limits.MAX_SECONDS", 0.02)
    slow = "{% set a = 'a' * 4000000 %}{% for i in range(90000) %}{% if 'b' in a %}{% endif %}{% endfor %}"
    long = "{% set a = 'a' * 4000000 %}{% set b = 'a' ~ 'a' * 3999999 %}"
    for source in (
        slow,
        long + "{{ 'b' in a }}" * 900,
        long + "{{ a" + " == b == a" * 100 + " }}",
        "{{ ('%%' * 2000000) % () }}",
        long + "{% for c in a if a != b %}{% endfor %}",
        long + "{{ range(99999) | map('default', a) | select('eq', b) | list }}",
        long + "{{ range(99999) | map('upper') | select('in', a) | list }}",
        # In compiling: what is read, what is written, and what depends on both.
        "{{ a }}" * 10_000,
        "{% if a %}" * 9 + "{% set b = 1 %}" * 900,
    ):
        with pytest.raises(TemplateError, match="seconds"):
            ChatTemplate(source).render(TALK)
    # The next rendering starts afresh.
    assert ChatTemplate("{{ messages[0].role }}").render(TALK) == "system"
