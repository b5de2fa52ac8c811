"""One training from text files to a folder: prepared, run, interrupted, resumed, published."""

import json
from collections.abc import Callable
from contextlib import suppress

import torch

from llama2gpu.checkpoints import Checkpoint, open_checkpoint
from llama2gpu.documents import read_documents
from llama2gpu.errors import RequestError
from llama2gpu.training import files, plot
from llama2gpu.training.data import encode_corpus
from llama2gpu.training.export import export_files
from llama2gpu.training.loop import Record, Trainer
from llama2gpu.training.metrics import Metrics, read_metrics
from llama2gpu.training.net import Net
from llama2gpu.training.plan import Plan
from llama2gpu.training.state import NAME as STATE
from llama2gpu.training.state import check_arguments, load_state, save_state
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
        self.plan, self.tell, self.resume, self.overwrite = plan, tell, resume, overwrite
        self.work = files.find_work(plan.out, resume=resume, overwrite=overwrite)
        files.check_output(plan.out, overwrite)
        base = None if plan.init_from is None else open_checkpoint(plan.init_from)
        plan.check(None if base is None else base.config)
        documents = read_documents(plan.texts)
        self.words = self._words(documents, base, resume)
        self.trainer = self._trainer(documents, base)
        text = self.trainer.corpus.fingerprint
        self.arguments = plan.arguments | {"text": text[:16]}
        self.finished = False
        self.done = self.saved = self._resumed() if resume else 0

    def run(self, report: Callable[[Record], None], stopped: Callable[[], bool]) -> bool:
        """Trains to the end and publishes the folder; False where `stopped` ended it before.

        What was done is saved then, every `save_every` steps, and, where there is room for it,
        when a step can't be recorded: resuming goes on from there.
        """
        files.find_work(self.plan.out, resume=self.resume, overwrite=self.overwrite)
        with files.working(self.work, fresh=not self.resume):
            if not self.finished:
                self._record(finished=False)
                files.write_whole(self.work / self.words.name, self.words.data)
                if not self._train(report, stopped):
                    return False
                self._export()
            (self.work / STATE).unlink(missing_ok=True)
            files.publish(self.work, self.plan.out)
        return True

    def _resumed(self) -> int:
        """The steps that are done; the arguments of a record must be those of the plan."""
        record = files.read_record(self.work)
        if record:
            check_arguments(record, self.arguments)
        if record.get("finished") is True:
            self.finished = True
            return self.plan.settings.steps
        return load_state(self.work, self.trainer.net, self.trainer.optimizer)

    def _train(self, report: Callable[[Record], None], stopped: Callable[[], bool]) -> bool:
        """The steps that are left; False where `stopped` ended them."""
        metrics = Metrics(self.work, self.done)
        try:
            for record in self.trainer.steps(self.done):
                self._note(record, metrics)
                report(record)
                stop, last = stopped(), self.done == self.plan.settings.steps
                if stop or last or self.done % self.plan.save_every == 0:
                    self._save(metrics)
                if stop and not last:
                    return False
        finally:
            metrics.close()
        return True

    def _note(self, record: Record, metrics: Metrics) -> None:
        self.done = record.step
        try:
            metrics.add(record)
        except RequestError as error:
            with suppress(RequestError):
                self._save()
            raise self._left(error) from error

    def _save(self, metrics: Metrics | None = None) -> None:
        """Saves the state, `metrics` before it, so that no saved step lacks its line."""
        try:
            if metrics is not None:
                metrics.sync()
            save_state(self.work, self.done, self.trainer.net, self.trainer.optimizer)
        except RequestError as error:
            raise self._left(error) from error
        self.saved = self.done

    def _left(self, error: RequestError) -> RequestError:
        return RequestError(f"{error}; then --resume goes on after step {self.saved}")

    def _words(self, documents: list[str], base: Checkpoint | None, resume: bool) -> Words:
        kept, given = self.work / "tokenizer.model", self.plan.tokenizer
        if given is None and base is None and resume and kept.exists():
            given = kept
        if given is not None or base is not None:
            return given_words(given, base)
        return trained_words(documents, self.plan.vocab, self.tell)

    def _trainer(self, documents: list[str], base: Checkpoint | None) -> Trainer:
        plan, tokenizer = self.plan, self.words.tokenizer
        corpus = encode_corpus(documents, tokenizer, plan.context, plan.held_out)
        config = base.config if base else plan.shape.config(tokenizer.vocab, plan.context)
        net = Net(config, plan.context, torch.Generator().manual_seed(plan.settings.seed))
        if base is not None:
            net.load(base)
        return Trainer(net.to(plan.device), corpus, plan.settings)

    def _record(self, *, finished: bool, **more: float | None) -> None:
        values = {"finished": finished, "steps_done": self.done, **more, **self.arguments}
        text = json.dumps(values, indent=2) + "\n"
        files.write_whole(self.work / files.RECORD, text.encode())

    def _export(self) -> None:
        """The model's files, the curve, and at last the record."""
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
        noted = bool(records) and records[-1].step == self.done
        loss = records[-1].held_out if noted else self.trainer.held_out()
        self._record(finished=True, held_out_loss=loss, seconds=round(seconds))
