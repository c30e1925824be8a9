"""Modules and networks whose passes are not those that bounds, exports and data take them for."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import train
from callbacks import CertifiedEvaluation, CertifiedVolume, Predictions
from datamodules import Digits
from lightning_modules import StandardTraining
from robust.attacks import APGD, FGSM, PGD
from robust.bounds import FeedForwardVerifier, LirpaVerifier, certify
from robust.errors import SettingError
from robust.threat_models import LinfBall
from tests.callbacks.trained import Plain, measured, small, trainer_with


class Stretched(Plain):
    """Predicts by its classifier on images of more contrast."""

    def forward(self, x):
        return self.classifier((4 * (x - 0.5) + 0.5).clamp(0, 1))


FEW = {"test_images": 6, "eval_batch_size": 6}


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (CertifiedEvaluation(), "CertifiedEvaluation.verifier"),
        (CertifiedVolume(num_samples=2), "CertifiedVolume.search"),
        (Predictions(epsilons=[0.1]), "Predictions.verifier"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_method_with_a_forward_of_its_own_has_no_certificates(callback, name, tmp_path):
    """Regression: the certificates of its classifier were taken for its own."""
    trainer = trainer_with(callback, default_root_dir=tmp_path)
    run = trainer.predict if isinstance(callback, Predictions) else trainer.test
    with pytest.raises(SettingError, match=rf"{name}.*: got 'Stretched'; its forward is not that of model.classifier"):
        run(Stretched(small(), epsilon=0.1), datamodule=Digits())


class Constant(nn.Module):
    """Features by a constant that is no buffer, perhaps out of the reach of ``vars``."""

    def __init__(self, hidden=False):
        super().__init__()
        basis = torch.randn(784, 32, generator=torch.Generator().manual_seed(0)) / 28
        self.basis = [basis] if hidden else basis
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        basis = self.basis[0] if isinstance(self.basis, list) else self.basis
        return self.head(torch.relu(x.flatten(1) @ basis))


def test_a_constant_of_a_network_is_converted_to_float64():
    """Regression: ``double`` leaves it in float32, and the first certificate ended in a traceback."""
    torch.manual_seed(0)
    network, x = Constant(), torch.rand(4, 1, 28, 28)
    y = network(x).argmax(1)
    verdicts = certify(LirpaVerifier(), network, LinfBall(1e-4), x, y)
    assert verdicts.certified.all()
    assert verdicts.recomputed.all()
    assert network.basis.dtype == torch.float32


def test_a_constant_that_cannot_be_converted_is_named_before_the_first_image():
    module = Plain(Constant(hidden=True), epsilon=0.01)
    remedy = "got 'Constant'; a copy in float64, by which certificates are checked, fails: .*register constants as buff"
    with pytest.raises(SettingError, match=rf"CertifiedEvaluation.verifier: got 'LirpaVerifier'; network: {remedy}"):
        trainer_with(CertifiedEvaluation()).test(module, datamodule=Digits(**FEW), verbose=False)
    plain = CertifiedEvaluation(rounding_safe=False)  # which needs no copy
    assert "test/certified_accuracy/linf_0.01" in measured(module, plain, **FEW)


@pytest.mark.parametrize("data", [True, False], ids=["data module", "loader"])
def test_a_network_in_float64_is_named_and_one_that_converts_is_not(data):
    """Regression: it passed the check, which took images of its own type, and failed in a traceback."""
    plain = DataLoader(TensorDataset(torch.rand(4, 1, 28, 28), torch.arange(4)), 4)
    given = {"datamodule": Digits(**FEW)} if data else {"dataloaders": plain}
    double = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()
    with pytest.raises(SettingError, match=r"model\.classifier: got 'Sequential with weights of float64'; .*64-true"):
        trainer_with().test(StandardTraining(double), **given, verbose=False)
    trainer_with(precision="64-true").test(StandardTraining(double), **given, verbose=False)

    class Converting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = double

        def forward(self, x):
            return self.inner(x.double()).float()

    trainer_with().test(StandardTraining(Converting()), **given, verbose=False)


@pytest.mark.parametrize("attack", [FGSM(), PGD(2), APGD(2)], ids=lambda each: type(each).__name__)
def test_attacks_name_images_of_another_type_than_the_weights(attack):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    with pytest.raises(SettingError, match=r"^images: got torch\.float32; the network has weights of torch\.float64"):
        attack(network, LinfBall(0.1), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))


def test_an_unused_instance_norm_is_no_cause():
    """Regression: auto_LiRPA was refused since an image's logits depend on others, which they do not."""

    class Unused(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(4, 3))
            self.spare = [nn.InstanceNorm2d(1)]
            self.add_module("norm", nn.InstanceNorm2d(1))

        def forward(self, x):
            return self[1](self[0](x))

    network, x = Unused(), torch.rand(2, 1, 2, 2)
    box, y = LinfBall(0.1).interval(x), torch.tensor([0, 1])
    own, other = (verifier(method="ibp").margins(network, box, y) for verifier in (FeedForwardVerifier, LirpaVerifier))
    torch.testing.assert_close(own, other)


def test_an_instance_norm_is_named_without_a_false_reason():
    network = nn.Sequential(nn.InstanceNorm2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(SettingError) as error:
        LirpaVerifier().margins(network, LinfBall(0.1).interval(torch.rand(2, 1, 2, 2)), torch.tensor([0, 1]))
    assert "InstanceNorm" in str(error.value)
    assert "depend on the others" not in str(error.value)


def test_an_export_is_refused_where_the_classifier_alone_does_not_predict(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "upside_down_method.py").write_text(
        "from lightning_modules import StandardTraining\n\n\nclass Mine(StandardTraining):\n"
        "    def forward(self, x):\n        return self.classifier(1 - x)\n"
    )
    common = ["--model=upside_down_method.Mine", "--model.classifier=robust.networks.DMSmall", "--data=Digits"]
    few = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    quiet = ["--trainer.logger=false", "--trainer.default_root_dir=run", "--trainer.accelerator=cpu"]
    train.main(["fit", *common, *few, *quiet])
    with pytest.raises(SystemExit):
        train.main(["export", *common, *quiet, "--ckpt_path=run/checkpoints/last.ckpt", "--to=safetensors"])
    assert "error: model: got 'Mine'; its forward is not that of model.classifier" in capsys.readouterr().err
