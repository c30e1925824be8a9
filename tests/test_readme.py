"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytorch_lightning as pl
import yaml

from callbacks import CertifiedEvaluation, EpsilonScheduler
from robust.networks import DMSmall

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_a_method_and_a_data_set_of_ones_own():
    names = {}
    for block in blocks("python"):
        exec(block, names)
    pl.seed_everything(0)
    module = names["IntervalTraining"](DMSmall(num_classes=2), epsilon=0.05)
    trainer = pl.Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[EpsilonScheduler("linear", length=10), CertifiedEvaluation()],
    )  # fmt: skip
    data = names["Stripes"](batch_size=60)
    trainer.fit(module, datamodule=data)
    metrics = trainer.test(module, datamodule=data, verbose=False)[0]
    assert metrics["test/clean_error"] <= metrics["test/verified_error/uniform"] < 0.2


def test_files_named_in_the_readme_exist():
    root = README.parent
    named = re.findall(r"(?:configs|docs|tests|robust|benchmarks)/[\w./-]*\w", README.read_text())
    assert named
    assert [name for name in named if not (root / name).exists()] == []


def test_yaml_blocks_are_yaml():
    for block in blocks("yaml"):
        assert "model" in yaml.safe_load(block)
