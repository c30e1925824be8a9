"""The bar moves inside a batch on a terminal; elsewhere nothing is written."""

import io
import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from torchmetrics import SumMetric

import callbacks.progress
from callbacks import Progress
from callbacks.evaluation.base import Evaluation
from datamodules import Digits
from robust.progress import tracked
from tests.callbacks.trained import stored


class Slow(Evaluation):
    """Four steps; after each, what the bar shows."""

    def __init__(self, every_n_epochs=None):
        super().__init__(every_n_epochs=every_n_epochs)
        self.shown = []

    def evaluate(self, module, x, y):
        for _ in tracked(range(4)):
            self.shown.append(self.position(module.trainer))
        self.update(type(self).__name__, SumMetric, torch.tensor(len(x)))

    def position(self, trainer):
        bar = trainer.progress_bar_callback
        if isinstance(bar, RichProgressBar):
            task = bar.test_progress_bar_id if trainer.testing else bar.val_progress_bar_id
            return bar.progress.tasks[task].completed
        if isinstance(bar, TQDMProgressBar):
            return (bar.test_progress_bar if trainer.testing else bar.val_progress_bar).n
        return None


class Terminal(io.StringIO):
    """Standard output of a terminal."""

    def isatty(self):
        return True


@pytest.fixture(params=[RichProgressBar, TQDMProgressBar])
def bar(request, monkeypatch):
    monkeypatch.setattr(callbacks.progress, "SECONDS", 0)
    return request.param()


def run(command, slow, tmp_path, *others, **settings):
    settings = {"limit_test_batches": 2, "limit_val_batches": 2, **settings}
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[slow, Progress(), *others], logger=False, default_root_dir=tmp_path, **settings
    )
    getattr(trainer, command)(stored(), datamodule=Digits(eval_batch_size=8), verbose=False)


@pytest.mark.parametrize("command", ["test", "validate"])
def test_the_bar_moves_inside_a_batch(command, bar, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    refreshed, refresh = [], RichProgressBar.refresh
    monkeypatch.setattr(RichProgressBar, "refresh", lambda *args, **kw: refreshed.append(0) or refresh(*args, **kw))
    slow = Slow()
    run(command, slow, tmp_path, bar)
    assert len(refreshed) > 8 or isinstance(bar, TQDMProgressBar)  # which draws at once
    assert slow.shown == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]


def test_two_evaluations_share_a_batch(bar, tmp_path, monkeypatch):
    class Other(Slow):
        def namespaces(self, module):
            return {"other"}

    monkeypatch.setattr(sys, "stdout", Terminal())
    slow, other = Slow(), Other()
    run("test", slow, tmp_path, other, bar, limit_test_batches=1)
    assert slow.shown + other.shown == pytest.approx([k / 8 for k in range(8)], abs=0.006)


def test_a_pipe_gets_no_line_more(bar, tmp_path, monkeypatch, capsys):
    texts = []
    for seconds in (0, 1e9):
        monkeypatch.setattr(callbacks.progress, "SECONDS", seconds)
        run("test", Slow(), tmp_path, type(bar)())
        texts.append(capsys.readouterr().out.count("\r"))
    assert texts[0] == texts[1]


def test_without_a_bar_nothing_is_written(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    run("test", Slow(), tmp_path, enable_progress_bar=False)
    assert terminal.getvalue() == ""
