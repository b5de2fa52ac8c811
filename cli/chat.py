"""`llama2gpu chat`: talking with a model."""

import logging
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import load_options, options
from llama2gpu.cli.chat_input import Input
from llama2gpu.cli.chat_talk import Talk
from llama2gpu.cli.main import one_line
from llama2gpu.cli.run import headline, load_model
from llama2gpu.errors import Llama2GPUError

if TYPE_CHECKING:
    from llama2gpu.api import Llama


@click.command()
@load_options.loading
@click.option("--system", metavar="TEXT", help="System prompt: what the model is to be.")
@options.chat_template
@options.sampling
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each answer.")
@options.quiet
def command(
    system: str | None,
    chat_template: str | None,
    as_json: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    """Talk with a model.

    Each line of standard input is a turn, and /help lists what else may be typed. Answers go to
    stdout, all else to stderr; `printf 'Hello!\\nAnd now?\\n' | llama2gpu chat` answers twice. A
    model that was not trained to talk, such as the small storyteller that comes with the package,
    goes on with the text of the conversation.
    """
    if rest["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json.")
    asked = options.sampling_values(rest)
    typed = Input()
    llama = load_model(rest, quiet)
    _choose_template(llama, chat_template)
    talk = Talk(llama, asked, system, as_json, quiet)
    talk.note(f"{headline(llama)}\nchat template {llama.chat.name}: {llama.chat.why}")
    if typed.terminal:
        talk.note("/help lists the commands; Control-D ends")
    if _converse(talk, typed):
        click.get_current_context().exit(130)


def _choose_template(llama: "Llama", name: str | None) -> None:
    from llama2gpu.chat import Chat

    llama.chat = Chat.of(llama.checkpoint, llama.tokenizer, name)
    if llama.chat.trained:
        return
    if llama.chat.name == "plain":
        what = "it goes on with the text; --chat-template names what it was trained on, if it was"
    else:
        what = "it may answer nonsense; --chat-template plain has it go on with the text"
    name = llama.checkpoint.path.name
    logging.getLogger("llama2gpu").warning(
        f"llama2gpu: {name!r} seems to be a base model, not trained to talk: {what}"
    )


def _converse(talk: Talk, typed: Input) -> bool:
    """All turns; returns whether Control-C ended them.

    At a terminal, a mistake costs a line, and Control-C the answer or what was typed; twice in a
    row there, it ends. Elsewhere both end the program.
    """
    pressed = False
    while True:
        try:
            turn = typed.turn()
            pressed = False
            if turn is None:
                return False
            if not turn.command:
                if talk.say(turn.text) and not typed.terminal:
                    return True
            elif not talk.command(turn.text):
                return False
        except KeyboardInterrupt:
            if pressed or not typed.terminal:
                return True
            pressed = True
            talk.note("\n(Control-C again, or Control-D, ends)")
        except Llama2GPUError as error:
            if not typed.terminal:
                raise
            click.echo(f"llama2gpu: error: {one_line(error)}", err=True)
