"""A small training by the command line, for the tests of runs and of errors."""

import train
from tests.testers import ROOT

CONFIGS = ROOT / "configs"
QUICKSTART = ["--config", str(CONFIGS / "quickstart.yaml")]
TINY = [
    *QUICKSTART,
    "--model.epsilon=0.01",
    "--data.batch_size=16",
    "--data.eval_batch_size=100",
    "--epsilon_schedule.length=1",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=16",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.callbacks=[{class_path: CertifiedEvaluation, init_args: {every_n_epochs: 1, pgd_steps: 0}}]",
    "--trainer.callbacks+={class_path: BudgetImages, init_args: {every_n_epochs: 2, count: 2}}",
]
FEW_BATCHES = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--test_after_fit=false"]
FEW_BATCHES += ["--trainer.callbacks=null"]


def run(command, folder, *settings):
    """Run a command line and return its log folder."""
    train.main([command, *TINY, *settings, f"--trainer.default_root_dir={folder}"])
    return sorted((folder / "lightning_logs").iterdir(), key=lambda path: path.stat().st_mtime)[-1]
