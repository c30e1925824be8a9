"""Mean budgets on the regions of synthetic data, with a generator whose budgets are known."""

import pytest
import torch
from torch import nn

from callbacks import BudgetRegions
from datamodules import Digits, DoubledDigits, WatermarkedDigits
from datamodules.doubled import BORDER
from lightning_modules.base import RobustClassifier
from robust.errors import SettingError
from robust.threat_models import LinfBall, PixelBox
from tests.callbacks.trained import trainer_with
from tests.testers import ROOT, run, two_processes

SIDE = 28


class Handmade(RobustClassifier):
    """Budgets of 0.1 plus 0.2 times the image, halved in the left half; they depend on the image alone."""

    def __init__(self, image_shape=(1, SIDE, SIDE), num_classes=20):
        size = image_shape[0] * image_shape[1] * image_shape[2]
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(size, num_classes)), epsilon=0.1)

    def threat_models(self, x, epsilon):
        budgets = 0.1 + 0.2 * x
        budgets[..., : x.shape[3] // 2] /= 2
        return {"handmade": PixelBox(budgets), "uniform": LinfBall(epsilon)}

    def training_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def measured(data, module, stage="test"):
    trainer = trainer_with(BudgetRegions())
    metrics = getattr(trainer, stage)(module, datamodule=data, verbose=False)[0]
    return {name: value for name, value in metrics.items() if "budget" in name}


@pytest.mark.parametrize("compositing", ["max", "add"])
def test_watermark_digit_and_background(compositing):
    data = WatermarkedDigits(eval_batch_size=64, compositing=compositing)
    module = Handmade()
    metrics = measured(data, module)
    x, _ = data.images("test")[torch.arange(299)]
    plain, _ = Digits().images("test")[torch.arange(299)]
    made = data.watermarked("test")
    budgets = module.threat_models(x, 0.1)["handmade"].budgets
    means = {"watermark": [], "digit": [], "background": []}
    same = {"watermark": [], "digit": [], "background": []}
    mean_budgets = budgets[:, 0].double().mean(0)
    for index in range(299):
        row, column = int(made.rows[index]), int(made.columns[index])
        patch = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        patch[row : row + 8, column : column + 8] = True
        mark = patch & (x[index, 0] > plain[index, 0])
        digit = ~mark & (plain[index, 0] > 0)
        for name, mask in (("watermark", mark), ("digit", digit), ("background", ~mark & ~digit)):
            means[name].append(budgets[index, 0][mask].double().mean())
            same[name].append(mean_budgets[mask].mean())
    means = {name: torch.stack(values) for name, values in means.items()}
    expected = {f"test/budget_region/handmade/{name}": each.nanmean().item() for name, each in means.items()}
    expected |= {
        f"test/budget_region/handmade/{name}/same_pixels": torch.stack(each).nanmean().item()
        for name, each in same.items()
    }
    for one, other in (("watermark", "digit"), ("watermark", "background"), ("digit", "background")):
        both = ~(means[one].isnan() | means[other].isnan())
        fraction = (means[one] < means[other])[both].double().mean().item()
        expected[f"test/budget_order/handmade/{one}_below_{other}"] = fraction
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert expected["test/budget_region/handmade/digit"] > expected["test/budget_region/handmade/background"]
    digit = "test/budget_region/handmade/digit"
    assert expected[digit] > 1.02 * expected[f"{digit}/same_pixels"], "these budgets follow the image"
    assert 0 < expected["test/budget_order/handmade/watermark_below_digit"] < 1


def test_the_decisive_and_the_irrelevant_half():
    data = DoubledDigits(eval_batch_size=50)
    module = Handmade((3, 32, 2 * SIDE), 10)
    metrics = measured(data, module, "validate")
    x, _ = data.images("val")[torch.arange(200)]
    budgets = module.threat_models(x, 0.1)["handmade"].budgets.double()
    left, right = budgets[:, :, BORDER:, :SIDE].mean((1, 2, 3)), budgets[:, :, BORDER:, SIDE:].mean((1, 2, 3))
    red = x[:, 0, 0, 0] == 1
    decisive, irrelevant = torch.where(red, left, right), torch.where(red, right, left)
    border = budgets[:, :, :BORDER].mean((1, 2, 3))
    assert 0.3 < red.double().mean() < 0.7
    name = "val/budget_region/handmade"
    assert metrics[f"{name}/decisive"] == pytest.approx(decisive.mean().item(), rel=1e-5)
    assert metrics[f"{name}/irrelevant"] == pytest.approx(irrelevant.mean().item(), rel=1e-5)
    mean = budgets.mean((0, 1))
    halves = mean[BORDER:, :SIDE].mean(), mean[BORDER:, SIDE:].mean()
    same = torch.where(red, *halves).mean().item()
    assert metrics[f"{name}/decisive/same_pixels"] == pytest.approx(same, rel=1e-5)
    assert metrics[f"{name}/border"] == pytest.approx(border.mean().item(), rel=1e-5)
    below = metrics["val/budget_order/handmade/decisive_below_irrelevant"]
    assert below == pytest.approx((decisive < irrelevant).double().mean().item())
    assert below == pytest.approx(red.double().mean().item(), abs=0.02), "budgets of the left half are half as large"


@pytest.mark.parametrize("data", [WatermarkedDigits(), DoubledDigits()])
def test_regions_partition_the_images(data):
    masks = data.regions("val", torch.tensor([0, 7, 3]))
    assert all(mask.shape == (3, 1, *data.image_shape[1:]) for mask in masks.values())
    assert (torch.stack(list(masks.values())).sum(0) == 1).all()


def test_data_without_regions_are_refused():
    with pytest.raises(SettingError, match="BudgetRegions, data: got 'Digits'; it has no method regions"):
        measured(Digits(), Handmade(num_classes=10))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:ckpt_path. got None")
def test_two_processes_measure_what_one_does(tmp_path):
    settings = [
        f"--config={ROOT / 'configs' / 'quickstart.yaml'}", f"--config={ROOT / 'configs/data/watermarked_digits.yaml'}",
        "--model.classifier.num_classes=20", "--data.eval_batch_size=64",
        "--trainer.callbacks=[BudgetRegions, {class_path: CertifiedEvaluation, init_args: {pgd_steps: 0}}]",
    ]  # fmt: skip
    _, one = run("test", settings, tmp_path / "one")
    _, two = two_processes("test", settings, tmp_path / "two")
    budgets = [{name: value for name, value in each["metrics"].items() if "budget" in name} for each in (one, two)]
    assert len(budgets[0]) == 9 + 4 + 2 + 1, "regions; range and volume; certified; recomputed"
    assert budgets[1] == pytest.approx(budgets[0], rel=1e-6)
