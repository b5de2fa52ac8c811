"""Templates, built in and from files: their texts, and the ids that transformers gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.chat import FORMATS, Chat
from llama2gpu.errors import RequestError
from llama2gpu.tokenizer import Tokenizer
from tests.chat.conftest import Pair
from tests.chat.models import Named, assistant, chat_of, system, user

TALK = [
    system(" be kind  "),
    user("  once upon a time\n"),
    assistant(" there was a little girl "),
    user("don't stop: café"),
]
#: What each built-in template makes of TALK, written out from the sources that `builtin` names.
TEXTS = {
    "llama2": "<s>[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nonce upon a time [/INST]"
    " there was a little girl </s><s>[INST] don't stop: café [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nbe kind<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nonce upon a time<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nthere was a little girl<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\ndon't stop: café<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "vicuna": "<s>be kind USER: once upon a time ASSISTANT: there was a little girl</s>"
    "USER: don't stop: café ASSISTANT:",
    "alpaca": "<s>be kind\n\n### Instruction:\nonce upon a time\n\n"
    "### Response:\nthere was a little girl</s>\n\n"
    "### Instruction:\ndon't stop: café\n\n### Response:\n",
    "mistral": "<s>[INST] be kind\n\nonce upon a time [/INST] there was a little girl</s>"
    "[INST] don't stop: café [/INST]",
    "plain": "<s> be kind  \n  once upon a time\n there was a little girl \ndon't stop: café",
}
#: Of the kinds that files have: lists of parts, namespaces, dates, tools, tags looked for.
FILES = {
    "loops": "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] == 'system' %}\n        {% continue %}\n    {% endif %}\n"
    "{{ message['role'] | upper }}: {{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "generation": "{{- bos_token }}{%- for m in messages %}{% generation %}{{ m.content | trim }}"
    "{% endgeneration %}{{ eos_token }}{%- endfor %}",
    "json": "{{ bos_token }}{{ messages | tojson(indent=2) }}{{ messages[0]|tojson }}"
    "{{ eos_token }}",
    "splits": "{% for m in messages %}{% set c = m.content %}{% if 'upon' in c %}"
    "{% set c = c.split('upon')[-1].lstrip() %}{% endif %}{{ bos_token + c + eos_token }}"
    "{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ bos_token }}{{ ns.n }}. {{ m.content }}{% endfor %}{{ eos_token }}",
    "tools": "{{ bos_token }}{% if tools is not none %}{{ tools | length }}{% endif %}"
    "{% if documents is defined and documents is none %}{{ messages[0].content }}{% endif %}",
    "date": "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%Y') | length }}"
    "{% endif %}{{ messages[-1].content }}",
}


def applied(library: Any, template: str, messages: Any, **more: Any) -> list[int]:
    found = library.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=False, **more
    )
    return list(found)


@pytest.mark.parametrize("name", FORMATS)
def test_built_in_text(name: str, llama2: Pair) -> None:
    assert chat_of(llama2[0], "", name).render(TALK) == TEXTS[name]


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_built_in_ids(name: str, begin: bool, both: Pair) -> None:
    ours, library = both
    for talk in (TALK, TALK[1:], TALK[1:2], TALK[:3]):
        theirs = applied(library, FORMATS[name].template, talk, add_generation_prompt=begin)
        assert chat_of(ours, "", name).prompt(talk, begin) == theirs


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "plain"])
def test_ids_of_sentencepiece(name: str, llama2_model: Pair) -> None:
    """The bare text begins with spaces, to which transformers adds none where the model does."""
    ours, library = llama2_model
    theirs = applied(library, FORMATS[name].template, TALK, add_generation_prompt=True)
    assert chat_of(ours, "", name).prompt(TALK) == theirs


@pytest.mark.parametrize("name", FILES)
def test_ids_of_files(name: str, both: Pair) -> None:
    ours, library = both
    for begin in (True, False):
        theirs = applied(library, FILES[name], TALK, add_generation_prompt=begin)
        assert chat_of(ours, FILES[name]).prompt(TALK, begin) == theirs


@pytest.mark.parametrize(
    "text", ["a < b > c", "1 <2", "x = [1, 2]; if a<|b: >", "<b>bold</b>", "<|eot_id", "|>"]
)
@pytest.mark.parametrize("template", [FORMATS["llama3"].template, *FILES.values()])
def test_ids_of_texts_with_parts_of_control_tokens(text: str, template: str, both: Pair) -> None:
    ours, library = both
    talk = [user(f"once upon {text}"), assistant(text), user(text)]
    assert chat_of(ours, template).prompt(talk) == applied(
        library, template, talk, add_generation_prompt=True
    )


def test_tags_that_a_template_looks_for(llama3: Pair) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% set c = m.content %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}<|eot_id|>{% endfor %}"
    )
    ours, library = llama3
    talk = [user("a <b> c"), assistant("<think>long</think>short"), user("d")]
    assert "long" not in chat_of(ours, template).render(talk)
    assert chat_of(ours, template).prompt(talk) == applied(library, template, talk)


def test_variables(llama3: Pair) -> None:
    template = (
        "{{ bos_token }}{{ tools | tojson }}{% if deep %}{{ messages[0].content }}{% endif %}"
    )
    ours, library = llama3
    tools = [{"type": "function", "function": {"name": "f", "description": "a > b"}}]
    for deep in (True, False):
        more: dict[str, Any] = {"tools": tools, "deep": deep}
        found = chat_of(ours, template).prompt([user("hi")], **more)
        assert found == applied(library, template, [user("hi")], **more)


def test_parts_of_a_content(llama3: Pair) -> None:
    chat = chat_of(llama3[0], "", "llama3")
    parts = [{"type": "text", "text": "once"}, {"type": "text", "text": " upon"}]
    assert chat.prompt([{"role": "user", "content": parts}]) == chat.prompt([user("once upon")])


def test_vicunas_own_system_prompt(llama2: Pair) -> None:
    text = chat_of(llama2[0], "", "vicuna").render([user("hi")])
    assert text.startswith("<s>A chat between a curious user and an artificial intelligence")
    assert text.endswith("the user's questions. USER: hi ASSISTANT:")


def test_who_takes_a_turn_out_of_turn(llama2: Pair) -> None:
    for name in ("llama2", "vicuna", "alpaca", "mistral"):
        with pytest.raises(RequestError, match=r"takes no such conversation: .*take turns"):
            chat_of(llama2[0], "", name).prompt([user("a"), user("b")])


def test_stops(llama3: Pair, llama2: Pair) -> None:
    chat = chat_of(llama3[0], "", "llama3")
    names = {chat.tokenizer.token(id).text for id in chat.stop_ids}
    assert names == {b"<|eot_id|>", b"<|eom_id|>", b"<|end_of_text|>"}
    assert chat_of(llama2[0], "", "vicuna").stops == ("USER:",)
    assert chat_of(llama2[0], "", "vicuna").stop_ids == {2}


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({"chat_template.jinja": "J"}, None, "J"),
        ({"chat_template.jinja": "J", "tokenizer_config.json": {"chat_template": "T"}}, None, "J"),
        ({"tokenizer_config.json": {"chat_template": "T"}}, None, "T"),
        ({"tokenizer_config.json": {"chat_template": [
            {"name": "default", "template": "D"}, {"name": "tool_use", "template": "U"}]}},
            None, "D"),
        ({"tokenizer_config.json": {"chat_template": [
            {"name": "default", "template": "D"}, {"name": "tool_use", "template": "U"}]}},
            "tool_use", "U"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "R"}]}},
            "rag", "R"),
    ],
)  # fmt: skip
def test_files(
    files: dict[str, Any], name: str | None, expected: str, llama2: Pair, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / file).write_text(text)
    chat = Chat.of(Named(folder), llama2[0], name)
    assert chat.trained
    assert chat.render([user("x")]) == expected


def test_a_template_in_a_file(llama2: Pair, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("mine: {{ messages[0].content }}")
    chat = Chat.of(Named(tmp_path / "model"), llama2[0], str(path))
    assert (chat.name, chat.trained) == ("mine.jinja", False)
    assert chat.render([user("x")]) == "mine: x"
    with pytest.raises(RequestError, match=r"choose llama2, llama3, .*, or a file of Jinja"):
        Chat.of(Named(tmp_path / "model"), llama2[0], "nonsense")


@pytest.mark.parametrize(
    ("called", "kind", "expected"),
    [
        ("Meta-Llama-3-8B-Instruct", "llama3", "llama3"),
        ("Meta-Llama-3-8B", "llama3", "plain"),
        ("models--meta-llama--Llama-2-7b-chat-hf/snapshots/0a1b", "llama2", "llama2"),
        ("Llama-2-7b-hf", "llama2", "plain"),
        ("CodeLlama-7b-Instruct-hf", "llama2", "llama2"),
        ("vicuna-7b-v1.5", "llama2", "vicuna"),
        ("vicuna-7b/model.bin", "llama2", "vicuna"),
        ("alpaca-7b", "llama2", "alpaca"),
        ("Mistral-7B-Instruct-v0.1", "llama2", "mistral"),
        ("Mistral-7B-v0.1", "llama2", "plain"),
    ],
)
def test_choice(called: str, kind: str, expected: str, request: pytest.FixtureRequest) -> None:
    words: Tokenizer = request.getfixturevalue(kind)[0]
    chat = Chat.of(Named(Path("/models") / called), words)
    assert (chat.name, chat.trained) == (expected, expected != "plain")
    assert "\n" not in chat.why


def test_choice_by_stop_tokens(llama3: Pair) -> None:
    eot = llama3[0].encode("<|eot_id|>", bos=False, special=True)
    assert Chat.of(Named(Path("m"), stop_ids=(*eot,)), llama3[0]).name == "llama3"
    assert Chat.of(Named(Path("m"), stop_ids=(1,)), llama3[0]).name == "plain"
