"""A network without gradients ends an evaluation that attacks it."""

import pytest
from torch import nn

from tests.testers import error_of


class Rounding(nn.Module):
    """A network without gradients."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x):
        return self.layer((3 * x).round().flatten(1))


@pytest.mark.filterwarnings("ignore:ckpt_path. got None")
def test_a_network_without_gradients_ends_an_evaluation_in_one_line(tmp_path, capsys):
    pgd = "[{class_path: AdversarialEvaluation, init_args: {attacks: {pgd: {attack: robust.attacks.PGD}}}}]"
    arguments = ["test", "--model=StandardTraining", f"--model.classifier={__name__}.Rounding", "--data=Digits"]
    arguments += [f"--trainer.callbacks={pgd}", "--trainer.limit_test_batches=1", "--trainer.logger=false"]
    error = error_of([*arguments, f"--trainer.default_root_dir={tmp_path}"], capsys)
    assert error.startswith("network: got a gradient of zero for all ")
