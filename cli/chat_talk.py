"""A conversation at the command line: turns, commands, and what fits the context."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import options
from llama2gpu.cli.run import as_object

if TYPE_CHECKING:
    from llama2gpu.api import Generation, Llama

HELP = """\
/reset        forget the conversation; the system prompt stays
/system TEXT  set the system prompt, or without TEXT remove it
/undo         take back your last turn and its answer
/save FILE    write the conversation as JSON
/load FILE    go on with a conversation that was saved
/exit         leave, as Control-D does
A line that ends in \\ goes on in the next; \"\"\" begins and ends a text of several lines; a line
that begins with // is sent with one of them. Control-C stops an answer."""


class Talk:
    """One conversation with a model.

    asked: keywords of `SamplingParams`. as_json: answers are objects, one a line.
    """

    def __init__(
        self, llama: "Llama", asked: dict[str, Any], system: str | None, as_json: bool, quiet: bool
    ) -> None:
        from llama2gpu.chat.history import History

        self.llama, self.asked, self.as_json, self.quiet = llama, asked, as_json, quiet
        self.history = History(system)

    def note(self, text: str) -> None:
        """A line on stderr."""
        if not self.quiet:
            click.echo(text, err=True)

    def say(self, text: str) -> bool:
        """Sends a text and prints the answer; returns whether Control-C cut it short.

        What fails, and an answer without a word, leave the conversation as it was.
        """
        kept = list(self.history.turns)
        self.history.ask(text)
        try:
            generation = self.llama.answer_ids(self._prompt(), **self.asked)
            interrupted = self._print(generation)
        except BaseException:
            self.history.turns = kept
            raise
        answer = generation.completion
        if interrupted and not answer.text:
            self.history.turns = kept
            self.note("(stopped before the answer began: your turn is taken back)")
            return True
        self.history.reply(answer.text)
        if answer.stop_reason == "context":
            self.note("(the context is full: the answer ends here)")
        return interrupted

    def command(self, line: str) -> bool:
        """Does what a line after the slash says; returns whether to go on."""
        from llama2gpu.chat.history import History, read_history

        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("exit", "quit"):
            return False
        if name == "reset":
            self.history = History(self.history.system)
            self.note("(forgotten)")
        elif name == "system":
            self.history.system = rest or None
            self.note("(system prompt set)" if rest else "(no system prompt)")
        elif name == "undo":
            gone = self.history.turns.pop() if self.history.turns else None
            self.note("(there is nothing to undo)" if gone is None else "(taken back)")
        elif name in ("save", "load") and not rest:
            self.note(f"(/{name} wants the name of a file)")
        elif name == "save":
            self.history.save(_path(rest))
            self.note(f"(saved in {rest})")
        elif name == "load":
            self.history = read_history(_path(rest))
            self.note(f"({len(self.history.turns)} turns from {rest})")
        else:
            self.note(HELP if name == "help" else f"(no command /{name}: /help lists them)")
        return True

    def _prompt(self) -> list[int]:
        """The ids of the conversation, less the oldest turns where the context is full.

        Room for the answer is kept: its bound, or a quarter of the context where that is less.
        """
        context, bound = self.llama.engine.model.context, self.asked["max_tokens"]
        most = context - min(context if bound is None else bound, context // 4)
        prompt = self.llama.chat.prompt
        ids = prompt(self.history.messages)
        if len(ids) <= most or len(self.history.turns) == 1:
            return ids
        dropped = self.history.drop(lambda messages: len(prompt(messages)) <= most)
        ids = prompt(self.history.messages)
        if len(ids) < context:  # else there will be no answer
            self.note(f"(the context of {context} tokens is full: {_turns(dropped)} left out)")
        return ids

    def _print(self, generation: "Generation") -> bool:
        """Streams the answer; returns whether Control-C cut it short."""
        begun = self.llama.chat.name == "plain"  # which goes on with the text, spaces and all
        try:
            for piece in generation:
                piece = piece if begun else piece.lstrip()
                begun = begun or bool(piece)
                if not self.as_json:
                    options.write(piece)
        except KeyboardInterrupt:
            generation.cancel()
            return True
        finally:
            if not self.as_json:
                options.write("\n")
        if self.as_json:
            click.echo(json.dumps(as_object(self.llama, generation), allow_nan=False))
        return False


def _path(text: str) -> Path:
    """A file as it is typed where no shell reads it."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  pathlib's own fails without a home


def _turns(count: int) -> str:
    return "the oldest turn is" if count == 1 else f"the oldest {count} turns are"
