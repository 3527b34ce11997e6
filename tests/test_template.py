"""Chat templates: the forms that models use, and those that are out for harm."""

from __future__ import annotations

import pytest

from pocketlm.errors import TemplateError
from pocketlm.template import ChatTemplate

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>"}]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n{% endif %}{% endfor %}",
            "Hi <b>\n",
        ),
        ("{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}", "<s>Be brief.</s>"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        (
            "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = s.n + 1 %}{% endfor %}{{ s.n }}",
            "2",
        ),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "Hi <b>"),
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "Hi <b>"}'),
        ("{{ {'a': 'é'} | tojson(indent=2) }}", '{\n  "a": "é"\n}'),
        ("{% if tools is none and not documents %}none{% endif %}", "none"),
        (
            "{% macro turn(m) %}[{{ m.role ~ ':' ~ 7 % 4 }}]{% endmacro %}{{ turn(messages[0]) }}",
            "[system:3]",
        ),
        ("{{ messages | map(attribute='role') | join(', ') }}{{ '-' * 3 }}", "system, user---"),
        (
            "{{ messages | selectattr('role', 'eq', 'user') | list | length }}{{ 'a-b'.split('-') | last }}",
            "1b",
        ),
        (
            "{{ 'a.b' | replace('.', '!') }}{{ 'a.b'.replace('.', '?') }}{{ ', '.join(['x', 'y']) }}",
            "a!ba?bx, y",
        ),
        ("{{ '%s-%d' % ('a', 2) }}{{ '{}-{:>3}'.format('b', 4) }}{{ '%s' | format('c') }}", "a-2b-  4c"),
        ("{% if add_generation_prompt %}<|assistant|>{% endif %}", "<|assistant|>"),
        ("{{ undefined_name }}{{ messages[0].tool_calls is defined }}", "False"),
    ],
)
def test_forms_in_use(source: str, expected: str) -> None:
    assert ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(TALK) == expected


def test_time_is_given() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([]).startswith("20")


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{% for %}", "line 1"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 999999999 }}", "too large"),
        ("{{ 10 ** 10 ** 10 }}", "not allowed"),
        ("{{ '%999999999d' % 1 }}", "width"),
        ("{{ '%*d' % (999999999, 1) }}", "width"),
        ("{{ '{:>999999999}'.format(1) }}", "width"),
        ("{{ '{:{}}'.format(1, 999999999) }}", "width"),
        ("{{ '%999999999d' | format(1) }}", "width"),
        ("{{ 'a' | center(999999999) }}", "center"),
        ("{{ 'a' | indent(999999999) }}", "width"),
        ("{{ ('a\n' * 100000) | indent(4000) }}", "characters"),
        ("{{ ('a\n' * 100000) | indent('b' * 4000) }}", "characters"),
        ("{{ 'a' | list | slice(100000000) | list }}", "slice"),
        ("{{ [[1] * 100000] * 100000 }}", "steps"),
        ("{{ lipsum(n=100000) }}", "lipsum"),
        (
            "{% set n = namespace(x=1) %}"
            "{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
            "steps",
        ),
        (
            "{% set n = namespace(x=1) %}{% for i in range(60) %}"
            "{% set n.x = {'a': n.x, 'b': (n.x, 1)} %}{% endfor %}{{ n.x | tojson }}",
            "steps",
        ),
        (
            "{% set n = namespace(x=1) %}{% macro f() %}{% set n.x = varargs %}{% endmacro %}"
            "{% for i in range(60) %}{{ f(n.x, n.x) }}{% endfor %}{{ n.x }}",
            "steps",
        ),
        ("{{ 'a'.ljust(999999999) }}", "unsafe"),
        (
            "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "characters",
        ),
        (
            "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "characters",
        ),
        (
            "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "steps",
        ),
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}"
            "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
            "characters",
        ),
        ("{{ ('a' * 9999).replace('a', 'b' * 9999) }}", "characters"),
        ("{{ ('a' * 9999) | replace('a', 'b' * 9999) }}", "characters"),
        ("{{ range(99999) | map('string') | join('x' * 999) }}", "characters"),
        ("{{ ('x' * 999).join(range(99999) | map('string')) }}", "characters"),
        ("{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "characters"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update({'a': 1}) }}", "unsafe"),
        ("{% include '/etc/hostname' %}", "loader"),
        ("{% import 'os' as os %}", "loader"),
        ("a" * (1 << 20) + "b", "longer"),
    ],
)
def test_harm_is_refused(source: str, part: str) -> None:
    with pytest.raises(TemplateError, match=part):
        ChatTemplate(source).render(TALK)


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.sandbox.MAX_SECONDS", 0.02)
    slow = "{% set a = 'a' * 4000000 %}{% for i in range(90000) %}{% if 'b' in a %}{% endif %}{% endfor %}"
    for source in (slow, "{{ 'b' in 'a' * 4000000 }}" * 10_000):
        with pytest.raises(TemplateError, match="seconds"):
            ChatTemplate(source).render(TALK)
    # The next rendering starts afresh.
    assert ChatTemplate("{{ messages[0].role }}").render(TALK) == "system"


def test_rendering_leaves_the_messages_alone() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    ChatTemplate("{% set m = messages[0] %}{{ m.content }}").render(messages)
    assert messages == [{"role": "user", "content": "Hi"}]
