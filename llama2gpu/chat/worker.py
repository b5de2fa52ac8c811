"""Renders chat templates in a process of its own, as what a checkpoint brings may be hostile.

Run as a program, it takes a JSON object a line, {"template", "variables", "limit"}, and answers
with one, {"text"}, {"error"} or {"refused"}: what is wrong with the template, or why it wants no
such conversation. Its memory and its processor time are bounded, and it can open and start nothing.
"""

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: For one conversation; a usual template takes a thousandth of it.
CPU_SECONDS = 3.0
MEMORY = 1 << 29

#: What Python and Jinja import only when a template needs it, while files can be opened yet.
_WARM = (
    "{{ '\\n' | tojson(indent=1) | pprint | wordwrap(9) }}",
    "{{ '<b>\\N{BULLET}' | striptags }}",
    "{{ strftime_now('%c %Z') }}{{ lipsum(1) }}",
    "{{ none.none }}",
    "{% if %}",
)


class RefusalError(TemplateError):
    """The template called `raise_exception`."""


class Generation(Extension):
    """The tag {% generation %}, which marks for training what the model says: here it does nothing.

    Source: Hugging Face's transformers, chat templates.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What lies between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> Environment:
    """Jinja's sandbox with what transformers gives to a template."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
    return made


def render(template: str, variables: dict[str, Any], limit: int) -> dict[str, str]:
    """The answer to one request; limit: characters of the text at most."""
    try:
        pieces, size = [], 0
        for piece in _compiled(template).generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                return {"error": f"it writes more than {limit} characters"}
    except RefusalError as refusal:
        return {"refused": str(refusal)}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except MemoryError:
        return {"error": f"it takes more than {MEMORY >> 20} MiB of memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
    return {"text": "".join(pieces)}


@lru_cache(16)
def _compiled(template: str) -> Template:
    return environment().from_string(template)


def _refuse(message: object) -> NoReturn:
    raise RefusalError(str(message)[:1000])


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """Without the HTML escapes of Jinja's own."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def close_doors() -> None:
    """Bounds memory; from here on no file opens and no process starts, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, bound in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        try:
            resource.setrlimit(what, (bound, bound))
        except (OSError, ValueError):  # a system without this bound, or with a lower one
            continue


def main() -> None:
    """Answers until its input ends; a request that takes too long ends it (SIGPROF)."""
    for template in _WARM:
        render(template, {}, 1000)
    close_doors()
    timed = hasattr(signal, "setitimer")
    for line in sys.stdin.buffer:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        reply = json.dumps(render(**json.loads(line)))
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(reply.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
