"""Run one attack and one bound from an installed wheel: ``python check_wheel.py``, outside the checkout."""

import importlib.util
from importlib.metadata import requires
from pathlib import Path

import torch
from torch import nn

import robust
from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, certify
from robust.threat_models import LinfBall

APPLICATION = ("train", "report", "cli", "callbacks", "datamodules", "lightning_modules", "pytorch_lightning")


def check_contents() -> None:
    """The wheel installs ``robust`` with its types, and nothing of the application."""
    folder = Path(robust.__file__).parent
    assert "site-packages" in folder.parts, f"robust comes from {folder}"
    assert (folder / "py.typed").is_file()
    assert [name for name in APPLICATION if importlib.util.find_spec(name)] == []
    always = [each.split(">")[0] for each in requires("robust-lightning") or [] if "extra ==" not in each]
    assert sorted(always) == ["numpy", "torch"], always


def check_use() -> None:
    """Certified <= attacked <= clean, example by example."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    x = torch.rand(64, 1, 8, 8)
    y = network(x).argmax(1)
    ball = LinfBall(0.02)
    attacked = network(PGD(steps=20)(network, ball, x, y)).argmax(1) == y
    certified = certify(FeedForwardVerifier("crown-ibp"), network, ball, x, y).certified
    assert (certified <= attacked).all()
    assert certified.any()
    assert not attacked.all()
    print(f"wheel: {certified.sum()} certified, {attacked.sum()} correct under attack, {len(x)} correct")


check_contents()
check_use()
