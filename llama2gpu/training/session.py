"""One training from text files to a folder: prepared, run, interrupted, resumed, published."""

import json
from collections.abc import Callable

import torch

from llama2gpu.checkpoints import Checkpoint, open_checkpoint
from llama2gpu.training import files, plot
from llama2gpu.training.data import encode_corpus, read_documents
from llama2gpu.training.export import export_files
from llama2gpu.training.loop import Record, Trainer
from llama2gpu.training.metrics import Metrics, read_metrics
from llama2gpu.training.net import Net
from llama2gpu.training.plan import Plan
from llama2gpu.training.state import NAME as STATE
from llama2gpu.training.state import load_state, save_state
from llama2gpu.training.words import Words, given_words, trained_words


class Session:
    """A training under way; `tell` takes lines for people, and `done` counts its steps.

    Raises a `Llama2GPUError` for whatever is wrong with the plan before anything is written.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        resume: bool = False,
        overwrite: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.plan, self.tell = plan, tell
        self.work = files.find_work(plan.out, resume=resume, overwrite=overwrite)
        files.check_output(plan.out, overwrite)
        base = None if plan.init_from is None else open_checkpoint(plan.init_from)
        plan.check(None if base is None else base.config)
        documents = read_documents(plan.texts)
        self.words = self._words(documents, base, resume)
        self.trainer = self._trainer(documents, base)
        text = self.trainer.corpus.fingerprint
        self.arguments = plan.arguments | {"text": text[:16]}
        self.done = 0
        if resume:
            self.done = load_state(
                self.work, self.arguments, self.trainer.net, self.trainer.optimizer
            )

    def run(self, report: Callable[[Record], None], stopped: Callable[[], bool]) -> bool:
        """Trains to the end and publishes the folder; False where `stopped` ended it before.

        What was done is saved then, every `save_every` steps, and where a step fails to be
        recorded: resuming goes on from there.
        """
        files.start_work(self.work, fresh=self.done == 0)
        files.write_whole(self.work / self.words.name, self.words.data)
        self._record(finished=False)
        metrics = Metrics(self.work, self.done)
        try:
            for record in self.trainer.steps(self.done):
                metrics.add(record)
                self.done = record.step
                report(record)
                last = self.done == self.plan.settings.steps
                if stopped() or last or self.done % self.plan.save_every == 0:
                    self._save()
                if stopped() and not last:
                    return False
        finally:
            metrics.close()
        self._publish()
        return True

    def _words(self, documents: list[str], base: Checkpoint | None, resume: bool) -> Words:
        if self.plan.tokenizer is not None:
            return given_words([self.plan.tokenizer], base)
        if base is not None:
            return given_words(base.tokenizer_files, base)
        kept = self.work / "tokenizer.model"
        if resume and kept.exists():
            return given_words([kept], base)
        return trained_words(documents, self.plan.vocab, self.tell)

    def _trainer(self, documents: list[str], base: Checkpoint | None) -> Trainer:
        plan, tokenizer = self.plan, self.words.tokenizer
        corpus = encode_corpus(documents, tokenizer, plan.context, plan.held_out)
        torch.manual_seed(plan.settings.seed)
        config = base.config if base else plan.shape.config(tokenizer.vocab, plan.context)
        net = Net(config, plan.context, torch.Generator().manual_seed(plan.settings.seed))
        if base is not None:
            net.load(base)
        return Trainer(net.to(plan.device), corpus, plan.settings)

    def _save(self) -> None:
        save_state(self.work, self.done, self.arguments, self.trainer.net, self.trainer.optimizer)

    def _record(self, *, finished: bool, **more: float | None) -> None:
        values = {"finished": finished, "steps_done": self.done, **more, **self.arguments}
        text = json.dumps(values, indent=2) + "\n"
        files.write_whole(self.work / files.RECORD, text.encode())

    def _publish(self) -> None:
        """The model's files, the curve and the record; then the folder takes its name."""
        net, records = self.trainer.net, read_metrics(self.work)
        made = export_files(net.config, net.state_dict(), self.words.tokenizer, self.plan.stored)
        for name, data in made.items():
            files.write_whole(self.work / name, data)
        curve = plot.loss_curve(records)
        if curve is None:
            self.tell("no loss curve: pip install matplotlib draws it the next time")
        else:
            files.write_whole(self.work / plot.NAME, curve)
        tokens = self.plan.settings.tokens(self.plan.context)
        seconds = sum(tokens / record.tokens_per_second for record in records)
        self._record(finished=True, held_out_loss=records[-1].held_out, seconds=round(seconds))
        files.publish(self.work, self.plan.out)
        (self.plan.out / STATE).unlink(missing_ok=True)
