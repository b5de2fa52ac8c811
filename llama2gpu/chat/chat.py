"""How a conversation becomes the prompt of a model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama2gpu.chat.choose import Choice, choose
from llama2gpu.chat.guard import Guard, plain
from llama2gpu.chat.messages import Message, check_messages
from llama2gpu.chat.sandbox import SANDBOX
from llama2gpu.checkpoints import Checkpoint
from llama2gpu.open_quantizer import end_ids
from llama2gpu.tokenizer import Tokenizer

#: Control tokens by which models of several kinds end their turn.
_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>")

#: A rendered text has so many characters at most, and besides so many times what it is made of.
_LEAST, _TIMES = 1 << 20, 8


@dataclass(frozen=True)
class Chat:
    """A model's way of talking: its template, and what ends an answer.

    name: of the template: "default" or another of the checkpoint's own, a built-in one (`FORMATS`),
    or its file's. why: how it was chosen, one line. trained: whether the checkpoint seems to be
    trained to talk. stop_ids: tokens that end an answer; stops: texts that do.
    """

    name: str
    why: str
    trained: bool
    template: str
    tokenizer: Tokenizer = field(repr=False)
    stop_ids: frozenset[int]
    stops: tuple[str, ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokenizer: Tokenizer, name: str | None = None) -> "Chat":
        """The way of talking called `name`, or the one that goes with a checkpoint.

        name: a built-in template, one of the checkpoint's own where it has several, or a file of
        Jinja. Raises `RequestError` where there is none of that name, and `CheckpointError` where a
        file of the checkpoint is damaged.
        """
        choice: Choice = choose(checkpoint, tokenizer, name)
        ends = [tokenizer.encode(end, bos=False, special=True) for end in _ENDS]
        controls = {ids[0] for ids in ends if len(ids) == 1 and tokenizer.token(ids[0]).control}
        return cls(
            name=choice.name,
            why=choice.why,
            trained=choice.trained,
            template=choice.template,
            tokenizer=tokenizer,
            stop_ids=frozenset(end_ids(checkpoint, tokenizer)) | controls,
            stops=choice.stops,
        )

    def prompt(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, complete: no BOS is to be added.

        messages: {"role", "content"} each, as `check_messages` takes them. add_generation_prompt:
        whether the model's turn is begun. variables: others that the template knows, such as tools.
        No text in messages and variables becomes a control token. Raises `RequestError` for what
        the template does not take, and for a template that is damaged or takes too much.
        """
        given = {"messages": check_messages(messages), **plain(variables)}
        text, guard = self._render(given, add_generation_prompt)
        return self.tokenizer.encode_rendered(text, guard.back)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The same conversation as text, for people: it does not tell what was typed."""
        given = {"messages": check_messages(messages), **plain(variables)}
        text, guard = self._render(given, add_generation_prompt)
        return guard.restore(text)

    def _render(self, given: dict[str, Any], begin: bool) -> tuple[str, Guard]:
        """The text with stand-ins in what was typed, and what they stand for.

        A template that looks into the messages, for a tag say, finds stand-ins. Where they make a
        difference, only whole names of control tokens have them, and all else is as it is, if
        that leaves the template's control tokens as they were.
        """
        seen, names = json.dumps(given, ensure_ascii=False), self.tokenizer.control_names()
        guard = Guard.of(names, seen + self.template)
        strict = self._ask(_guarded(guard, given), begin, len(seen))
        loose = self._ask(_guarded(guard.only(names), given), begin, len(seen))
        if guard.restore(loose) == guard.restore(strict):
            return strict, guard
        same = self.tokenizer.controls_in(loose) == self.tokenizer.controls_in(strict)
        return (loose if same else strict), guard

    def _ask(self, given: dict[str, Any], begin: bool, size: int) -> str:
        bos, ends = self.tokenizer.bos_id, self.tokenizer.eos_ids
        variables = {
            "bos_token": "" if bos is None else self._name(bos),
            "eos_token": self._name(ends[0]) if ends else "",
            "add_generation_prompt": begin,
            **dict.fromkeys(("tools", "documents")),  # as in transformers: none, not undefined
            **given,
        }
        return SANDBOX.render(self.template, variables, _LEAST + _TIMES * size)

    def _name(self, id: int) -> str:
        return self.tokenizer.token(id).text.decode(errors="replace")


def _guarded(guard: Guard, given: dict[str, Any]) -> dict[str, Any]:
    """What a template gets; roles are known words, and every template asks for them."""
    roles = [message["role"] for message in given["messages"]]
    found: dict[str, Any] = guard.put(given)
    for message, role in zip(found["messages"], roles, strict=True):
        message["role"] = role
    return found
