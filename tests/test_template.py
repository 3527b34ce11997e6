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
        (
            "{{ 5000 * 5000 }} {{ 7 // 2 - 1 }} {{ 2.567 | round(1) }} {{ '%d' | format(100000) }}",
            "25000000 2 2.6 100000",
        ),
        (
            "{{ tools | selectattr('a') | list }}{{ [3, 1] | sort }}{{ 'b' | safe + '{}'.format('<') }}",
            "[][1, 3]b&lt;",
        ),
        (
            "{{ messages[::-1][0].role }}{{ messages | map(attribute='role') | unique | list }}",
            "user['system', 'user']",
        ),
        (
            "{{ dict(b=1).items() | list }}{{ 1 < 2 < 3 }}{{ {'a': 1} | tojson(indent=4) }}",
            "[('b', 1)]True{\n    \"a\": 1\n}",
        ),
        ("{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.last }}{% endfor %}", "1True"),
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
        ("{{ [[1] * 100000] * 100000 }}", "entries"),
        ("{{ lipsum(n=100000) }}", "lipsum"),
        (
            "{% set n = namespace(x=1) %}"
            "{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
            "entries",
        ),
        (
            "{% set n = namespace(x=1) %}{% for i in range(60) %}"
            "{% set n.x = {'a': n.x, 'b': (n.x, 1)} %}{% endfor %}{{ n.x | tojson }}",
            "entries",
        ),
        (
            "{% set n = namespace(x=1) %}{% macro f() %}{% set n.x = varargs %}{% endmacro %}"
            "{% for i in range(60) %}{{ f(n.x, n.x) }}{% endfor %}{{ n.x }}",
            "entries",
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
            "entries",
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


def test_a_long_talk_is_rendered() -> None:
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " * 500} for i in range(120)]
    source = (
        "{% set n = namespace(all=[]) %}{% for m in messages %}{% set n.all = n.all + [m] %}"
        "{% if messages[loop.index0:] | selectattr('role', 'equalto', 'user') | list %}{% endif %}"
        "{% endfor %}"
        "{% for m in n.all %}[{{ m['content'].split('</think>') | last | trim }}]{% endfor %}"
    )
    assert ChatTemplate(source).render(talk) == "".join(f"[{m['content'].strip()}]" for m in talk)


def test_rendering_leaves_the_messages_alone() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    ChatTemplate("{% set m = messages[0] %}{{ m.content }}").render(messages)
    assert messages == [{"role": "user", "content": "Hi"}]
