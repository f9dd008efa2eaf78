from __future__ import annotations

import contextlib
import resource
import threading
from pathlib import Path

import pytest
from jinja2.exceptions import SecurityError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from edged.errors import InvalidRequestError, ModelError
from edged.serving.generation import GenerateRequest, Message
from edged.serving.prompt import PromptBuilder
from edged.serving.template import ChatTemplate, template_fault
from edged.serving.template_sandbox import BoundedEnvironment, render_within
from edged.serving.tokenizer import Tokenizer
from tests.serving.vocabularies import with_metadata

CHAT = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi\n there {{ 7 * 7 }}"),
    Message(role="assistant", content="Yes?"),
    Message(role="user", content="More."),
)


def render(source: str | None, adds_bos: bool = False, chat: tuple[Message, ...] = CHAT) -> str:
    template = ChatTemplate(source, bos_text="<s>", eos_text="</s>", adds_bos=adds_bos)
    with contextlib.closing(template):
        return template.render(chat).text


def test_bundled_models_template(tokenizer: Tokenizer) -> None:
    assert tokenizer.chat_template is not None
    template = ChatTemplate(
        tokenizer.chat_template,
        bos_text=tokenizer.bos_text,
        eos_text=tokenizer.eos_text,
        adds_bos=tokenizer.adds_bos,
    )
    with contextlib.closing(template):
        text = template.render(CHAT[1:2]).text
        whole = template.render(CHAT).text
    reference = Jinja2ChatFormatter(tokenizer.chat_template, tokenizer.eos_text, tokenizer.bos_text)
    assert text == reference(messages=[CHAT[1].model_dump()]).prompt
    assert text.endswith("<|im_start|>assistant\n") and "{{ 7 * 7 }}" in text
    assert whole.startswith("<|im_start|>system\nBe brief.<|im_end|>")


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
        ("x\n{{ 1 / 0 }}", "line 2: it divides by zero"),
        ("{{ messages[0].content + none }}", "line 1: it combines values that do not go together"),
        ("{% include '/etc/passwd' %}", "includes another file"),
        ("{% import '/etc/passwd' as x %}", "includes another file"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested too deeply"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{{ (1).bit_length() }}", "may not use 'bit_length' of a number"),
        ("{{ 'a'.encode() }}", "may not use 'encode' of a text"),
        ("{{ strftime_now('%9999999Y') }}", "the date"),
    ],
)
def test_broken_templates(source: str, fault: str) -> None:
    with pytest.raises(InvalidRequestError, match=fault) as raised:
        render(source)
    message = raised.value.message
    assert "\n" not in message
    assert not any(word in message for word in ("Error", "recursion", "passwd", "NoneType", "object", "str "))


GROW = "{% set n = namespace(x='ab') %}{% for i in range(90) %}"
SHARED = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
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
        "{{ (1).to_bytes(3*10**9,'big')|length }}",
        "{{ ('a'.encode()*(3*10**9))|length }}",
        "{% for i in range(30000) %}{% set x = ('a'.encode()*(10**8)) %}{% endfor %}",
        "{{ '{:{w}}'.format(1, w='10000000000') }}",
        "{{ ('%(a)9999d' * 99999) % {'a': 1} }}",
        "{% set y %}{% for i in range(99999) %}" + "c" * 50_000 + "{% endfor %}{% endset %}",
        "{% set n = namespace(x=[]) %}{% set t = 'a' * 1000000 %}"
        "{% for i in range(99999) %}{% set n.x = n.x + [t[1:]] %}{% endfor %}",
        "{{ ('a ' * 500000).split() | length }}",
        "{{ 1.5 | round(10 ** 12) }}",
        "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
        "{{ strftime_now('%99999999Y') }}",
        SHARED + "{{ n.x }}",
        SHARED + "{{ n.x | tojson }}",
        SHARED + "{{ n.x | string }}",
        SHARED + "{{ '' ~ n.x }}",
        SHARED + "{{ '{}'.format(n.x) }}",
        SHARED + "{{ '%s' % n.x }}",
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


ENDLESS = {  # one instruction each, which nothing within the process can stop
    "comparing": SHARED + "{% set a = n.x %}" + SHARED + "{{ a == n.x }}",
    "hashing": SHARED.replace("[1]", "(1,)").replace("[n.x, n.x]", "(n.x, n.x)") + "{{ {n.x: 1} }}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_what_no_sandbox_can_stop_ends_with_its_process(source: str) -> None:
    template = ChatTemplate(source + "{% if 0 %}{% endif %}", bos_text="", eos_text="", adds_bos=False)
    with contextlib.closing(template):
        for _ in range(2):  # there is another process for the next request
            with pytest.raises(InvalidRequestError, match="more than 3 seconds or too much memory"):
                template.render(CHAT)


def test_closing_ends_a_rendering() -> None:
    template = ChatTemplate(ENDLESS["comparing"], bos_text="", eos_text="", adds_bos=False)
    raised: list[Exception] = []

    def render_it() -> None:
        try:
            template.render(CHAT)
        except (ModelError, InvalidRequestError) as error:
            raised.append(error)

    thread = threading.Thread(target=render_it)
    thread.start()
    template.close()
    thread.join()
    assert [type(error) for error in raised] == [ModelError]
    with pytest.raises(ModelError, match="unloaded"):
        template.render(CHAT)


def test_work_is_charged_before_it_is_done() -> None:
    """The limits of the process need not step in for what the sandbox knows."""
    environment = BoundedEnvironment()
    for source in ("{{ ('a' * 10 ** 12) | length }}", "{{ (1).to_bytes(9, 'big') }}", SHARED + "{{ n.x }}"):
        with pytest.raises(SecurityError):
            render_within(1000, environment.from_string(source))


def test_a_template_that_can_never_be_rendered() -> None:
    assert template_fault("{{ bos_token }}") is None
    fault = template_fault("a\n{% fox %}")
    assert fault is not None and "line 2: Encountered unknown tag 'fox'" in fault


def test_the_insides_of_python_are_out_of_reach() -> None:
    assert render("{{ raise_exception.__globals__ }}{{ strftime_now.__func__ }}") == ""


def test_long_conversations_are_no_attack() -> None:
    chat = tuple(Message(role="user", content="word " * 2000) for _ in range(100))
    gather = "{% for m in messages %}{% set n.x = n.x + m.content %}{% endfor %}"
    text = render("{% set n = namespace(x='') %}" + gather + "{{ n.x }}", chat=chat)
    assert len(text) == 100 * 10_000


def test_raw_prompts_do_without_the_template(vocab_path: Path, tmp_path: Path) -> None:
    path = with_metadata(vocab_path, tmp_path / "odd.gguf", prefix="tokenizer.", chat_template="{% fox %}")
    tokenizer = Tokenizer(path)
    prompts = PromptBuilder(tokenizer)
    try:
        assert prompts.build(GenerateRequest(prompt="Hi")).tokens
        with pytest.raises(InvalidRequestError, match="unknown tag 'fox'"):
            prompts.build(GenerateRequest(messages=CHAT))
    finally:
        prompts.close()
        tokenizer.close()
