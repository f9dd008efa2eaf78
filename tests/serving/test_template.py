from __future__ import annotations

import resource

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from edged.errors import InvalidRequestError
from edged.serving.generation import Message
from edged.serving.template import ChatTemplate
from edged.serving.tokenizer import Tokenizer

CHAT = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi\n there {{ 7 * 7 }}"),
    Message(role="assistant", content="Yes?"),
    Message(role="user", content="More."),
)


def render(source: str | None, adds_bos: bool = False, chat: tuple[Message, ...] = CHAT) -> str:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>", adds_bos=adds_bos).render(chat).text


def test_bundled_models_template(tokenizer: Tokenizer) -> None:
    assert tokenizer.chat_template is not None
    template = ChatTemplate(
        tokenizer.chat_template,
        bos_text=tokenizer.bos_text,
        eos_text=tokenizer.eos_text,
        adds_bos=tokenizer.adds_bos,
    )
    text = template.render(CHAT[1:2]).text
    reference = Jinja2ChatFormatter(tokenizer.chat_template, tokenizer.eos_text, tokenizer.bos_text)
    assert text == reference(messages=[CHAT[1].model_dump()]).prompt
    assert text.endswith("<|im_start|>assistant\n") and "{{ 7 * 7 }}" in text
    assert template.render(CHAT).text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


LIKE_REAL_ONES = [
    "{{bos_token}}{% for m in messages %}[{{ m.role ~ ':' ~ m['content'] | trim }}]{% endfor %}{{eos_token}}",
    "{%- set ns = namespace(seen=false, text='') %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.text = ns.text + m.content.strip() * 2 %}{%- endif %}{%- endfor %}{{ ns.text | tojson }}",
    "{% macro show(m, tools=none) %}{{ '%s|' % m.role }}{{ '{:>9}'.format(m.content[:4]) }}{% endmacro %}"
    "{% for m in messages[1:] | list %}{{ show(m) }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "{% generation %}{{ messages | map(attribute='role') | join(', ') }}{% endgeneration %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 7 // 2 + 3 }}",
    "{% set text %}{{ messages[0].content }}!{% endset %}{{ text | upper | replace('E', 'é') | center(9) }}",
    "{% for part in 'a,b,c'.split(',') %}{{ loop.index0 }}{{ part.replace('b', 'bb') }}{% endfor %}"
    "{{ 'x'.join(['a', 'b']) }}{{ not tools }}",
]


@pytest.mark.parametrize("source", LIKE_REAL_ONES)
def test_limits_do_not_change_the_text(source: str) -> None:
    reference = Jinja2ChatFormatter(source, "</s>", "<s>")
    assert render(source) == reference(messages=[message.model_dump() for message in CHAT]).prompt


def test_never_two_begin_tokens() -> None:
    assert render("{{ bos_token }}x") == "<s>x"
    assert render("{{ bos_token }}x", adds_bos=True) == "x"
    assert render("x", adds_bos=True) == "x"


def test_fallback_without_a_template() -> None:
    rendered = ChatTemplate(None, bos_text="", eos_text="", adds_bos=False).render(CHAT[:1] + CHAT[3:])
    assert rendered.text == "system: Be brief.\nuser: More.\nassistant:"
    assert rendered.stop == ("\nuser:",)


def test_refusal_of_the_template_itself() -> None:
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="at least one message"):
        render("x", chat=())


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{% for %}", "Expected an expression"),
        ("{{ absent.name }}", "'absent' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + none }}", "concatenate"),
        ("{% include 'x' %}", "template"),
    ],
)
def test_broken_templates(source: str, fault: str) -> None:
    with pytest.raises(InvalidRequestError, match=fault) as raised:
        render(source)
    assert "\n" not in raised.value.message


GROW = "{% set n = namespace(x='ab') %}{% for i in range(90) %}"
LONG = "{% set a = 'a' * 100000 %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set tick = 1 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        GROW + "{% set n.x = n.x ~ n.x %}{% endfor %}",
        GROW + "{% set n.x = n.x + n.x %}{% endfor %}",
        GROW + "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
        GROW + "{% set n.x = [n.x, n.x] | join %}{% endfor %}",
        GROW + "{% set n.x = ''.join([n.x, n.x]) %}{% endfor %}",
        GROW + "{% set n.x = n.x.replace('a', 'aa').replace('b', 'bb') %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=3) %}{% for i in range(90) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ '%010000000000d' % 1 }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ '%010000000000d' | format(1) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10000000000) }}",
        "{{ '{x:10000000000}'.format_map({'x': 1}) }}",
        LONG + "{{ a.replace('a', a) }}",
        LONG + "{{ a | replace('a', a) }}",
        LONG + "{{ a | join(a) }}",
        LONG + "{{ a.join(a) }}",
        "{{ messages | tojson(indent=10000000000) }}",
        "{{ lipsum(n=1000000) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
    ],
)
def test_hostile_templates_are_stopped(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequestError) as raised:
        render(source)
    assert "MemoryError" not in raised.value.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # KiB


def test_the_insides_of_python_are_out_of_reach() -> None:
    assert render("{{ raise_exception.__globals__ }}{{ strftime_now.__func__ }}") == ""


def test_long_conversations_are_no_attack() -> None:
    chat = tuple(Message(role="user", content="word " * 2000) for _ in range(100))
    gather = "{% for m in messages %}{% set n.x = n.x + m.content %}{% endfor %}"
    text = render("{% set n = namespace(x='') %}" + gather + "{{ n.x }}", chat=chat)
    assert len(text) == 100 * 10_000
