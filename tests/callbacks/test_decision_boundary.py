"""Pictures of decision boundaries: the plane, the lines of the threat models, files and settings."""

import pytest
import torch

from callbacks import DecisionBoundary
from callbacks.pictures.decision_boundary import plane_through
from datamodules import Digits
from robust.errors import SettingError
from robust.threat_models import L1Ball, L2Ball, LinfBall
from tests.callbacks.trained import images, trainer_with


def test_the_plane_is_centred_on_the_image_and_its_directions_are_orthonormal():
    torch.manual_seed(0)
    x, towards = torch.full((1, 20, 20), 0.5), torch.randn(1, 20, 20)
    plane = plane_through(x, towards, torch.linspace(-1, 1, 3)).view(3, 3, 1, 20, 20)
    assert torch.equal(plane[1, 1], x)
    columns, rows = plane[1, 2] - x, plane[2, 1] - x
    torch.testing.assert_close(columns, towards / towards.norm())
    torch.testing.assert_close(rows.norm(), torch.tensor(1.0))
    assert (columns * rows).sum().abs() < 1e-5
    torch.testing.assert_close(plane[0, 2], x + columns - rows)
    far = plane_through(x, towards, torch.linspace(-99, 99, 3))
    assert far.min() == 0, "every point is an image"
    assert far.max() == 1


def test_colours_are_the_predicted_classes_and_lines_the_budgets(trained, monkeypatch):
    drawn = []
    monkeypatch.setattr(DecisionBoundary, "_picture", lambda self, axis, *parts: (drawn.append(parts), axis.plot([])))
    balls = {"linf": LinfBall(0.05), "l2": L2Ball(1.0), "l1": L1Ball(6.0)}
    monkeypatch.setattr(trained, "threat_models", lambda x, epsilon: balls)
    x, y = (part[:2] for part in images())
    torch.manual_seed(0)
    with torch.no_grad():
        DecisionBoundary(extent=6.0, points=41).figure(trained, x, y)
    assert len(drawn) == 2
    for index, (offsets, classes, lines) in enumerate(drawn):
        assert classes[41 * 41 // 2] == trained(x[index : index + 1]).argmax(1)
        assert len(classes.unique()) > 1, "the attack's direction crosses a boundary"
        across, down = torch.meshgrid(offsets, offsets, indexing="xy")
        within = across.square() + down.square() <= 1
        # cutting to [0, 1] shortens: the line of l2 encloses the circle of its radius
        assert lines["l2"].view(41, 41)[within].all()
        assert 0 < lines["l1"].sum() < len(classes)
        assert lines.keys() == balls.keys()


@pytest.mark.parametrize(("command", "stage"), [("test", "test"), ("validate", "val")])
def test_writes_a_picture(command, stage, trained, tmp_path):
    callback = DecisionBoundary(count=2, points=5, steps=2)
    trainer = trainer_with(callback, default_root_dir=tmp_path, limit_test_batches=1, limit_val_batches=1)
    before = torch.random.get_rng_state()
    getattr(trainer, command)(trained, datamodule=Digits(), verbose=False)
    (picture,) = (tmp_path / "boundaries").iterdir()
    assert picture.name == f"{stage}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert torch.equal(torch.random.get_rng_state(), before), "torch's generators do not change"


@pytest.mark.parametrize(("setting", "value"), [("count", 0), ("extent", 0), ("points", 2)])
def test_wrong_settings(setting, value):
    with pytest.raises(SettingError, match=rf"DecisionBoundary\.{setting}: got {value}"):
        DecisionBoundary(**{setting: value})
