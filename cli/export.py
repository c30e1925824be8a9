"""The subcommand ``export``: a checkpoint's classifier as ONNX, safetensors or VNN-LIB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from cli.model_card import ExportedModel, data_name, model_card, read_records, training_settings
from datamodules import ImageDataModule
from lightning_modules import RobustClassifier, TrainingModule
from robust import zoo
from robust.checkpoints import read_saved
from robust.errors import require
from robust.export import Property, write_instances, write_onnx, write_property, write_safetensors
from robust.folders import check_writable
from robust.metric_names.registry import threat_model_name
from robust.modes import attack_mode
from robust.networks import without_noise
from robust.threat_models import Box, LinfBall, ThreatModel

Format = Literal["onnx", "safetensors", "vnnlib"]
_MEAN_NETWORK = "This is the mean network: the trained noise is off, and the measured results are with noise."


class ExportTrainer(pl.Trainer):
    """Lightning's trainer with the method ``export``, which LightningCLI turns into a subcommand."""

    def export(
        self,
        model: TrainingModule,
        datamodule: ImageDataModule,
        config: dict[str, Any],
        to: Format,
        ckpt_path: str | None = None,
        folder: str | None = None,
        indices: list[int] | None = None,
        epsilon: float | None = None,
        timeout: int = 300,
        license: str | None = None,
    ) -> None:
        """Write a checkpoint's classifier in the format of other tools.

        Args:
            model: module of the checkpoint's method.
            datamodule: data module that gives the images' shape, and the test images of properties.
            config: settings of this command as plain data.
            to: onnx, safetensors (weights with a model card), or vnnlib (ONNX with robustness properties).
            ckpt_path: path of a checkpoint that fit wrote.
            folder: folder of the files; by default ``export`` in the run's log folder, or, for a checkpoint from a
                URL or the zoo, in ``trainer.default_root_dir``.
            indices: indices of the test images for vnnlib; by default the first ten.
            epsilon: radius of the properties' linf balls in pixel units; by default the module's own budgets.
            timeout: time limit of each property in ``instances.csv``, in seconds.
            license: licence of the weights for the model card, an SPDX identifier such as mit.
        """
        module = _loaded(model, datamodule, ckpt_path)
        require(hasattr(datamodule, "image_shape"), "data", type(datamodule).__name__, "give one with an image_shape")
        checkpoint = Path(str(ckpt_path))
        run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
        target = run / "export" if folder is None else Path(folder)
        check_writable(target, "folder")
        target.mkdir(parents=True, exist_ok=True)
        export = _Export(module, datamodule, target)
        if to == "onnx":
            export.onnx(f"{checkpoint.stem}.onnx")
        elif to == "safetensors":
            given = str(config.get("ckpt_path"))
            if given.startswith(zoo.PREFIX):
                export.of_zoo(given.removeprefix(zoo.PREFIX), license)
                return
            records = read_records(run)
            export.safetensors(checkpoint.stem, records, training_settings(records, _read(ckpt_path)), license)
        else:
            export.vnnlib(checkpoint.stem, list(range(10)) if indices is None else indices, epsilon, timeout)


@dataclass
class _Export:
    """Writes one classifier into one folder."""

    module: RobustClassifier
    data: ImageDataModule
    folder: Path

    def onnx(self, name: str, batch: int | None = None) -> None:
        path = self.folder / name
        difference = write_onnx(self.module.classifier, self.data.image_shape, path, batch)
        rank_zero_info(f"ONNX: {path} (onnxruntime differs by {difference:.1g} in the logits)")
        if self.module.stochastic:
            rank_zero_info(_MEAN_NETWORK)

    def of_zoo(self, name: str, license: str | None) -> None:
        """Weights of a network of the zoo, with the card that it has there."""
        card = zoo.card(name)
        own = str(yaml.safe_load(card.split("---\n")[1])["license"])
        require(license in (None, own), "license", license, f"the zoo's networks have the licence {own}; leave it out")
        self._weights(name, own)
        (self.folder / f"{name}.md").write_text(card, encoding="utf-8")

    def _weights(self, name: str, license: str | None) -> str:
        """Write the weights, and return the network's class."""
        path, kind = self.folder / f"{name}.safetensors", type(self.module.classifier)
        about = {"method": type(self.module).__name__, "network": f"{kind.__module__}.{kind.__qualname__}"}
        write_safetensors(self.module.classifier, path, about | ({"license": license} if license else {}))
        rank_zero_info(f"Weights: {path}, model card: {path.with_suffix('.md')}")
        return about["network"]

    def safetensors(self, name: str, records: dict[str, Any], settings: dict[str, Any], license: str | None) -> None:
        """Weights of a run's checkpoint, with a card from the run's records."""
        network = self._weights(name, license)
        noise = "The network has noise; the weights include its scales." if self.module.stochastic else None
        model = ExportedModel(
            file=f"{name}.safetensors",
            method=type(self.module).__name__,
            data=data_name(settings),
            image_shape=self.data.image_shape,
            num_classes=self.data.num_classes,
            settings=settings,
            records=records,
            license=license,
            notes=[f"**Network**: `{network}`.", *([noise] if noise else [])],
        )
        (self.folder / f"{name}.md").write_text(model_card(model), encoding="utf-8")

    def vnnlib(self, name: str, indices: list[int], epsilon: float | None, timeout: int) -> None:
        require(timeout >= 1, "timeout", timeout, "give at least 1 second")
        x, y = _test_images(self.data, indices)
        with attack_mode(self.module, "eval"), without_noise(self.module):
            predicted = self.module(x).argmax(1)
            threat_name, threat_model = _box(self.module, x, epsilon)
            lower, upper = threat_model.interval(x)
        folder = self.folder / f"{name}-vnnlib"
        folder.mkdir(exist_ok=True)
        _Export(self.module, self.data, folder).onnx("network.onnx", batch=1)  # some tools accept no other batch size
        properties = []
        for row, index in enumerate(indices):
            path = folder / f"image_{index}_{threat_name}.vnnlib"
            label = int(y[row])
            box = Box(lower[row : row + 1], upper[row : row + 1])
            comment = f"{type(self.data).__name__}, test image {index}, class {label}, budgets: {threat_name}"
            write_property(path, box, label, self.data.num_classes, comment)
            properties.append(Property("network.onnx", path.name, timeout))
        write_instances(folder / "instances.csv", properties)
        wrong = [index for index, ok in zip(indices, (predicted == y).tolist(), strict=True) if not ok]
        if wrong:
            rank_zero_info(f"Images {wrong} are misclassified without perturbation, so their properties are violated")
        rank_zero_info(f"VNN-LIB: {len(properties)} properties in {folder / 'instances.csv'}")


def _read(path: str | None) -> dict[str, Any]:
    content: dict[str, Any] = read_saved(str(path), "ckpt_path", "give a checkpoint that fit wrote")
    return content


def _loaded(module: TrainingModule, data: ImageDataModule, path: str | None) -> RobustClassifier:
    """The module in evaluation mode with the weights of a checkpoint.

    Raises:
        SettingError: if there is no checkpoint, the checkpoint is of another method or network, the data have other
            classes, or the method does not train a classifier, or has a ``forward`` of its own.
    """
    require(path is not None, "ckpt_path", path, "give a checkpoint that fit wrote")
    require(isinstance(module, RobustClassifier), "model", type(module).__name__, "it is not a classifier; give one")
    assert isinstance(module, RobustClassifier)
    module.require_own_forward("model")
    checkpoint = _read(path)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    if (state := checkpoint.get(type(data).__qualname__)) is not None:
        data.load_state_dict(state)
    weights = [value for name, value in checkpoint["state_dict"].items() if name.startswith("classifier.")]
    own = {weight.dtype for weight in module.classifier.state_dict().values()}
    if torch.float64 not in own and any(weight.dtype == torch.float64 for weight in weights):
        rank_zero_warn("ckpt_path: its weights are float64; those of the export are rounded to float32")
    return module.eval()


def _test_images(data: ImageDataModule, indices: list[int]) -> tuple[Tensor, Tensor]:
    """Test images (B, C, H, W) and labels (B,).

    Raises:
        SettingError: if there is no index, or an index is given twice or is not that of a test image.
    """
    require(len(indices) > 0, "indices", indices, "give at least one test image")
    require(len(set(indices)) == len(indices), "indices", indices, "give each image once")
    data.prepare_data()
    data.setup("test")
    images = data.images("test")
    for index in indices:
        require(
            0 <= index < len(images),
            "indices",
            index,
            f"the test has {len(images)} images; give 0 to {len(images) - 1}",
        )
    x, y = images[torch.tensor(indices)]
    return x, y


def _box(module: RobustClassifier, x: Tensor, epsilon: float | None) -> tuple[str, ThreatModel]:
    """The threat model of the properties and its name in files: a linf ball, or the module's first box.

    Raises:
        SettingError: if the radius is out of its range, or the module has no box.
    """
    if epsilon is not None:
        require(0 < epsilon <= 1, "epsilon", epsilon, "give a radius in (0, 1], in pixel units")
        return threat_model_name("linf", epsilon), LinfBall(epsilon)
    threat_models = module.threat_models(x, module.epsilon)
    boxes = {name: threat_model for name, threat_model in threat_models.items() if threat_model.is_box}
    names = ", ".join(threat_models)
    remedy = f"VNN-LIB describes boxes, but the module's threat models are {names}; give the radius of a linf ball"
    require(bool(boxes), "epsilon", epsilon, remedy)
    return next(iter(boxes.items()))
