"""What a chat template may do is bounded, and what templates of models do comes out as in Jinja."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import jinja2.sandbox
import pytest

from tarsdb.errors import InterruptError, ModelError
from tarsdb.model_ops.generation import template_work
from tarsdb.model_ops.generation.chat import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]
TALK = [
    {"role": "system", "content": " Be kind.\n"},
    {"role": "user", "content": "What is 1 + 1?\n\n"},
    {"role": "assistant", "content": "<think>\nadd\n</think>\n\nTwo, 'of course'."},
    {"role": "user", "content": 'And 2 × 3 <&> "?"'},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
EACH = "{% for _ in range(100000) %}"
END = "{% endfor %}"
DOUBLED = "{% set ns = namespace(x=[1], y='ab', t=(1,)) %}{% for _ in range(99) %}"


def render(source: str, messages: Any = USER, **asked: Any) -> str:
    return "".join(text for text, _ in ChatTemplate(source, TOKENS).render(messages, **asked))


def transformers_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def in_jinja(source: str, messages: Any) -> str:
    """Render in the sandbox alone, set up as transformers does."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = transformers_json
    copied = [dict(message) for message in messages]
    return environment.from_string(source).render(
        messages=copied, add_generation_prompt=True, **TOKENS
    )


LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim +"
    " '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INST = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}"
    "{%- endif %}{%- set ns = namespace() %}{%- set ns.index = 0 %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST] ' ~ message.content ~ '[/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content']|trim + eos_token}}"
    "{%- endif %}{%- endfor %}"
)
THINKING = (
    "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.multi_step_tool and message.role == 'user' and message.content is string and not("
    "message.content.startswith('<tool_response>') and "
    "message.content.endswith('</tool_response>')) %}{%- set ns.multi_step_tool = false %}"
    "{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and"
    " not loop.first) %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' +"
    " '\n' }}{%- elif message.role == 'assistant' %}{%- set reasoning_content = '' %}"
    "{%- if '</think>' in message.content %}{%- set reasoning_content = "
    "message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- reasoning_content.strip('\n') ~ '|' ~ content }}{%- endif %}{%- endfor %}"
)
TOOLS = (
    "{%- macro json_to_type(spec, depth=0) %}{%- if spec is mapping %}{%- for key, value in "
    "spec|dictsort %}{{ ' ' * depth }}{{ key }}: {{ json_to_type(value, depth + 1) }}\n{% endfor %}"
    "{%- elif spec is sequence and spec is not string %}{{ spec|map('string')|join(', ') }}"
    "{%- else %}{{ spec|tojson }}{%- endif %}{%- endmacro %}"
    "{{ json_to_type({'name': 'f', 'type': ['a', 1], 'of': {'x': none, 'y': 1.5}}) }}"
    "{%- macro twice() %}{{ caller('a') }}{{ caller('b') }}{% endmacro %}"
    "{%- call(word) twice() %}{{ word }}!{% endcall %}"
    "{%- for message in messages if message.role != 'system' recursive %}{{ message.role }}"
    "{%- else %}nobody{% endfor %}{% filter upper %}done {{ messages[-1].content }}{% endfilter %}"
    "{% block end %}{% set x %}{{ eos_token }}!{% endset %}{{ x }}{% endblock %}"
)
EXPRESSIONS = (
    "messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join('; ')",
    "(messages|rejectattr('role', 'eq', 'system')|list|first).role", "messages|map('length')|list",
    "(messages|last)['content']", "messages|length", "messages|tojson", "messages|tojson(indent=2)",
    "messages|tojson(true, sort_keys=true)", "messages|tojson(separators=(',', ':'))",
    "messages|map('tojson')|join", "[3, 1, 2]|sort(reverse=true)", "[1, 2, 1]|unique|list",
    "range(7)|batch(3, 'x')|list", "range(7)|slice(3)|list", "'ab'|list", "[1, 2]|sum",
    "[[1], [2]]|sum(start=[])", "{'b': 1, 'a': 2}|dictsort", "{'a': 1}|items|list",
    "{'a': 1}.items()|list", "messages[0].get('x', 'none')", "messages[0].keys()|list",
    "'a' in 'ba'", "messages|groupby('role')|map(attribute=0)|list", "'%s-%03d' % ('a', 7)",
    "'%s'|format('b')", "'{:>5}|{x}'.format(1, x='y')", "'a-b'.split('-')", "'a b'.split()",
    "'a-b'.rsplit('-', 1)", "'x\ny'.splitlines()", "'x'.join(['a', 'b'])",
    "'aXa'.replace('X', 'yy')", "'aXa'|replace('a', '')", "' a '|trim", "'xax'.strip('x')",
    "'a b'|title ~ 'C'|lower ~ 'd'|upper ~ 'ef'|capitalize", "'a\nb'|indent(2, true)",
    "'a'|center(5)", "'5'|int + 2", "'1.5'|float", "1.26|round(1)", "-3|abs",
    "[1, 2]|max - [1, 2]|min", "none|default('d') ~ nothing|default('e') ~ ''|d('f', true)",
    "2 ** 10 % 7 // 2 / 4 - 1 * 3", "'ab' * 3", "[1] * 2 + [2]", "1 < 2 <= 2 != 3", "'<' | e",
    "'long text of words'|truncate(8)", "'a b c'|wordcount", "messages is sequence", "5 is odd",
    "5 is divisibleby 5", "'a' is in ['a']", "messages[1:3]|map(attribute='role')|list",
    "'abc'[::-1]", "cycler('a', 'b').next()", "dict(a=1)", "[none, true, 1.5, 'x']|string",
    "'x'|safe", "'a'.upper() ~ 'B'.lower() ~ 'c'.title() ~ 'ab'.find('b') ~ 'aa'.count('a')",
    "'a'|wordwrap(5)", "'a'|urlencode", "'<b>x</b>'|striptags", "1000|filesizeformat",
    "[1, [2]]|pprint", "[]|first", "messages|map(attribute='content')|map('trim')|select|list",
    "[1, 2]|reverse|list", "'ab'|last",
)  # fmt: skip


@pytest.mark.parametrize("messages", [TALK, TALK[1:], USER])
@pytest.mark.parametrize("source", [LLAMA, INST, THINKING, TOOLS])
def test_templates_as_models_have_them_come_out_as_in_jinja(source: str, messages: Any) -> None:
    assert render(source, messages) == in_jinja(source, messages)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_comes_out_as_in_jinja(expression: str) -> None:
    source = "{{ " + expression + " }}"
    assert render(source, TALK) == in_jinja(source, TALK)


def test_a_long_conversation_leaves_most_of_the_work() -> None:
    talk = [
        {"role": role, "content": "word " * 40}
        for _ in range(1000)
        for role in ("user", "assistant")
    ]
    for source in (LLAMA, INST, THINKING):
        environment = template_work.CountingEnvironment()
        with environment.counting(lambda: None) as work:
            environment.from_string(source).render(messages=talk, **TOKENS)
        assert work.left > 0.95 * template_work.WORK


BOUNDED = [
    EACH + EACH + END + END,
    EACH + "{% for _ in range(100000) if false %}" + END + END,
    EACH + "{% set x = range(100000)|map('string')|list %}" + END,
    EACH + "{% set x = range(100000)|sort %}" + END,
    EACH + "{% set x = (range(100000)|list)[1:] %}" + END,
    EACH + "{% set ns = [" + "1," * 50_000 + "] %}" + END,
    EACH + "x" * 200_000 + END,
    "{% filter upper %}" + EACH + "x" * 200_000 + END + "{% endfilter %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set x = 'a' * 3000000 %}" + EACH + "{{ x }}" + END,
    "{% set x = 'a' * 3000000 %}" + EACH + "{% set y = x|upper %}" + END,
    "{% set x = 'a' * 3000000 %}" + EACH + "{% if 'b' in x %}{% endif %}" + END,
    "{{ 'a' * 10 ** 10 }}", "{{ [[1] * 100000] * 1000 }}", "{{ [1]|batch(10 ** 10, 0)|list }}",
    "{{ [1]|slice(10 ** 10)|list }}", "{{ range(100000)|join('a' * 1000000) }}",
    "{{ range(100000)|map('string')|join('a' * 1000000) }}",
    "{{ ('a' * 1000000).join(range(100000)|map('string')) }}",
    "{{ range(100000)|batch(1)|sum(start=[]) }}", "{{ ('a' * 100000000)|list|length }}",
    "{{ ('a ' * 100000000).split()|length }}", "{{ ('a' * 100000000)|batch(1)|list|length }}",
    "{{ 'a'|center(10 ** 10) }}", "{{ 'a'.ljust(10 ** 10) }}", "{{ 'a'.zfill(10 ** 10) }}",
    "{{ ('\\t' * 1000).expandtabs(10 ** 9) }}", "{{ ('a\\n' * 1000)|indent(10000000) }}",
    "{{ messages|tojson(indent=10 ** 10) }}", "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 10, 1) }}", "{{ '%10000000000d'|format(1) }}",
    "{{ '{:10000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10 ** 10}) }}", "{{ lipsum(n=10 ** 9) }}",
    "{{ (1).to_bytes(10 ** 10, 'big') }}", "{{ 15|round(10 ** 10) }}",
    "{% set x = 'a' * 5000000 %}{{ x.rfind('b' ~ x) }}",
    "{% set x = 'a' * 5000000 %}{{ x|trim(x) }}",
    "{{ ('<!--' * 100000)|striptags }}", "{{ ('http://' * 100000)|urlize }}",
    DOUBLED + "{% set ns.x = ns.x + ns.x %}" + END,
    DOUBLED + "{% set ns.y = ns.y ~ ns.y %}" + END,
    DOUBLED + "{% set ns.y %}{{ ns.y }}{{ ns.y }}{% endset %}" + END,
    DOUBLED + "{% set ns.y = ns.y|replace('a', ns.y) %}" + END,
    DOUBLED + "{% set ns.y = '{0}{0}'.format(ns.y) %}" + END,
    DOUBLED + "{% set ns.y = ns.y.join([ns.y, ns.y]) %}" + END,
    *(
        DOUBLED + "{% set ns.x = [ns.x, ns.x] %}{% set ns.t = (ns.t, ns.t) %}" + END + use
        for use in (
            "{{ ns.x }}", "{{ ns.x|tojson }}", "{{ 'x' ~ ns.x }}", "{{ ns }}",
            "{{ ns.x == [ns.x[0], ns.x[0] + []] }}", "{{ ns.x is eq [ns.x[0], 1] }}",
            "{{ [ns.x, [ns.x[0], [1]]]|select|sort }}", "{% set d = {ns.t: 1} %}",
            "{{ messages[0][ns.t] }}", "{{ messages[0].get(ns.t) }}",
            "{{ [cycler(ns.x), cycler([1])]|sort(attribute='current') }}",
        )
    ),
]  # fmt: skip


@pytest.fixture
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thirtieth of what may be done, to have the tests end sooner."""
    monkeypatch.setattr(template_work, "WORK", template_work.WORK // 30)


@pytest.mark.parametrize("source", BOUNDED)
def test_work_and_memory_are_bounded(source: str, little_work: None) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(ModelError, match="refuses the messages: it takes more than 279620 steps"):
        render(source)
    assert time.thread_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 'a'.encode() % 1 }}", "no bytes"),
        (DOUBLED + "{% set ns.x = 7 ** 999 %}{% set ns.x = ns.x ** 99 %}" + END, "16384 bits"),
        ("{{ 10 ** 10000000000 }}", "16384 bits"),
        ("{% block a %}{{ self.a() }}{% endblock %}", "recursion"),
    ],
)
def test_other_things_no_template_needs_are_refused(source: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"refuses the messages: .*{reason}"):
        render(source)


def test_a_check_is_asked_and_ends_the_work() -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise InterruptError("enough")

    with pytest.raises(InterruptError, match="enough"):
        render(EACH + EACH + END + END, check=check)
    assert asked == 3
    render(LLAMA, check=check)


def test_templates_of_two_threads_are_counted_apart(little_work: None) -> None:
    import threading

    template = ChatTemplate("{% for _ in range(40000) %}" + END, {})
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                template.render(USER)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
