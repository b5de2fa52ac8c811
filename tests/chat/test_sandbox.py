"""Templates that a checkpoint brings may be hostile: they end soon, small, and in one line."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.chat import sandbox
from llama2gpu.chat.sandbox import WORKER, Sandbox
from llama2gpu.errors import RequestError

LIMIT = 1 << 20
DOUBLING = "{%% set ns = namespace(x='aa') %%}{%% for i in range(100) %%}%s{%% endfor %%}"
LONG = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "{% for i in range(10**9) %}{% endfor %}": "Range too big",
    LONG: "takes too long",
    "{% for i in range(99999) %}0123456789ab{% endfor %}": "more than 1048576 characters",
    "{{ 'a' * 10**7 }}": "more than 1048576 characters",
    "{{ 'a' * 10**10 }}": "memory",
    "{{ 'x' | center(10**10) }}": "memory",
    "{{ '%10000000000d' % 1 }}": "memory|too big",
    "{{ '{:>10000000000}'.format(1) }}": "memory",
    "{{ messages | tojson(indent=10**10) }}": "memory",
    DOUBLING % "{% set ns.x = ns.x ~ ns.x %}": "memory",
    DOUBLING % "{% set ns.x = ns.x.replace('a', ns.x) %}": "memory",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "nested too deeply",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "nested too deeply",
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{{ cycler.__init__.__globals__ }}": "SecurityError",
    "{{ ('' | attr('__class__')).mro() }}": "Undefined|SecurityError",
    "{{ messages.append(1) }}": "SecurityError",
    "{{ messages[0].update(role='system') }}": "SecurityError",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}": "no loader",
    "{% if %}": "line 1: ",
    "{{ nothing.at.all }}": "'nothing' is undefined",
}


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    made = Sandbox()
    yield made
    made.stop()


def render(box: Sandbox, template: str) -> str:
    return box.render(template, {"messages": [{"role": "user", "content": "hi"}]}, LIMIT)


@pytest.mark.parametrize("template", HOSTILE, ids=lambda template: template[:40])
def test_hostile(template: str, box: Sandbox) -> None:
    with pytest.raises(RequestError, match=HOSTILE[template]) as error:
        render(box, template)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert str(error.value).endswith("; give another with --chat-template")
    assert render(box, "{{ messages[0].content }}") == "hi"  # the next one is served


@pytest.mark.parametrize(
    "template",
    [
        "{{ '{0.__class__}'.format(1) }}",
        "{{ self.__init__ }}",
        "{{ namespace.__init__ }}",
        "{{ messages[0]['__class__'] }}",
        "{{ '' | attr('__class__') }}",
    ],
)
def test_nothing_is_behind_an_attribute(template: str, box: Sandbox) -> None:
    assert render(box, template) == ""


def test_what_a_filter_imports_is_there(box: Sandbox) -> None:
    assert render(box, "{{ '<b>a &amp; b</b>' | striptags }} \\N{BULLET}") == "a & b \\N{BULLET}"
    assert render(box, "{{ '\\N{BULLET}' }}") == "\N{BULLET}"


def test_refusal(box: Sandbox) -> None:
    with pytest.raises(RequestError, match=r"takes no such conversation: no .x1b.31m way$") as e:
        render(box, "{{ raise_exception('no\n\\x1b[31m way') }}")
    assert "\x1b" not in str(e.value)


def test_it_opens_and_starts_nothing() -> None:
    """Were the sandbox to leak, its process could still do nothing."""
    code = (
        f"import importlib.util as u; s = u.spec_from_file_location('w', {str(WORKER)!r})\n"
        "w = u.module_from_spec(s); s.loader.exec_module(w); w.close_doors()\n"
        "import os\n"
        "for act in (lambda: open('/etc/passwd'), os.fork, lambda: os.system('true')):\n"
        "    try: print('done' if act() != -1 else 'no')\n"
        "    except OSError: print('no')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "no" in done.stdout.split()[0]
    if os.getuid():  # a superuser may start as many processes as there are
        assert done.stdout.split() == ["no"] * 3


def test_control_c_is_not_for_it(box: Sandbox) -> None:
    render(box, "x")
    assert box._process is not None
    assert os.getpgid(box._process.pid) != os.getpgid(0)


def test_one_that_was_killed_is_replaced(box: Sandbox) -> None:
    render(box, "x")
    assert box._process is not None
    os.kill(box._process.pid, signal.SIGKILL)
    box._process.wait()
    assert render(box, "y") == "y"


def test_an_interrupted_request_leaves_no_answer_behind(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "Timer", pressed)
        with pytest.raises(KeyboardInterrupt):
            render(box, "first")
    assert render(box, "second") == "second"


def test_without_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="pip install jinja2"):
        render(Sandbox(), "x")


def test_a_worker_that_answers_nonsense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "worker.py"
    fake.write_text("import sys\nsys.stdin.readline()\nprint('{', flush=True)\nsys.stdin.read()\n")
    monkeypatch.setattr(sandbox, "WORKER", fake)
    box = Sandbox()
    with pytest.raises(RequestError, match="can't be used"):
        render(box, "x")
    assert box._process is None


def test_what_is_given_stays_as_it_was(box: Sandbox) -> None:
    given: dict[str, Any] = {"messages": [{"role": "user", "content": "\ud800é\U0001f600"}]}
    assert box.render("{{ messages[0].content[1:] }}", given, LIMIT) == "é\U0001f600"
