"""The largest certified volume of test images, after Liu et al. 2019, on any number of processes."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_info
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from callbacks._stages import Stage, tested_loader
from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.order import check_order
from callbacks.evaluation.saved_rows import Rows, SavedRows, concatenate
from callbacks.evaluation.verifiers import require_volume, try_verifier
from lightning_modules.base import RobustClassifier, num_images
from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, LargestCertifiedBox
from robust.bounds.verifier import full_precision
from robust.errors import SettingError, require
from robust.fingerprint import described, digest, own_code, structure, weights_of
from robust.folders import check_writable
from robust.metrics import Gathered
from robust.metrics.confidence import wilson_interval
from robust.random import global_seed
from robust.threat_models import Box, PixelBox

NAME = "CertifiedVolume"
CHECK_STEPS = 5
COLUMNS = ["certified", "log_epsilon", "log_epsilon_capped"]


class CertifiedVolume(Evaluation):
    """The largest certified box around each test image, and the certified accuracy by its volume.

    An example is certified at epsilon if the volume of its box, prod_i epsilon_i over n pixels, is at least epsilon^n.
    The images are a random subset of the test data, the same for every model, number of processes and batch size.
    Logged:

    - ``test/certified_accuracy/volume_<epsilon>``: fraction of images certified at the module's epsilon, or at each of
      ``epsilons``, with ``.../low`` and ``.../high``: Wilson's interval for the whole test data
    - ``test/certified_accuracy/capped_volume_<epsilon>``: the same with every budget capped at 1
    - ``test/certified_volume/certified``: fraction of images with any certified box
    - ``test/certified_volume/epsilon``: mean over these images of the uniform budget of the same volume
    - ``test/certified_volume/samples``: number of images

    ``certified_volume/test.csv`` in the log folder has the ``epsilon`` of each image, the uniform budget of the same
    volume. With a ``state_folder``, an interrupted evaluation continues after the completed images, and a later
    evaluation with other ``epsilons`` needs no search.

    Source: contextual budgets, Sec. 4.1 ("By Liu et al."), which does not state settings and number of images.

    Args:
        search: search for the box. Without a verifier of its own, it uses the module's verifier; if that is a
            ``FeedForwardVerifier``, it uses CROWN-IBP.
        num_samples: number of images; null for all.
        epsilons: sizes in (0, 1] with which volumes are compared; by default the module's epsilon.
        batch_size: number of images that a process searches at a time.
        seed: seed of the choice of images.
        confidence: confidence level of the interval.
        state_folder: folder for the results of completed images; give each checkpoint and search its own.

    Raises:
        SettingError: if a setting is out of its range, the test has fewer images than ``num_samples`` or is limited to
            a part of them, the network cannot be bounded, or ``state_folder`` holds results of another checkpoint,
            search or choice of images.
        ContradictionError: if an image is misclassified in its certified box, without perturbation or under a short
            attack.
    """

    stages = ("test",)

    def __init__(
        self,
        search: LargestCertifiedBox | None = None,
        num_samples: int | None = 500,
        epsilons: list[float] | None = None,
        batch_size: int = 50,
        seed: int = 0,
        confidence: float = 0.95,
        state_folder: str | None = None,
    ) -> None:
        super().__init__(seed)
        fits = num_samples is None or num_samples >= 1
        require(fits, f"{NAME}.num_samples", num_samples, "give at least 1, or null for all images")
        require(batch_size >= 1, f"{NAME}.batch_size", batch_size, "give at least 1")
        require(0 < confidence < 1, f"{NAME}.confidence", confidence, "give a probability in (0, 1)")
        for epsilon in epsilons or []:
            require(0 < epsilon <= 1, f"{NAME}.epsilons", epsilon, "give sizes in (0, 1], in pixel units")
        self.search = LargestCertifiedBox() if search is None else search
        self._attack = PGD(CHECK_STEPS, early_stop=True)
        self.num_samples, self.epsilons, self.batch_size = num_samples, epsilons, batch_size
        self.confidence = confidence
        self.state_folder = None if state_folder is None else Path(state_folder)
        self._chosen = torch.zeros(0, dtype=torch.bool)
        self._table: Rows = {}

    def check_test(self, trainer: Trainer, module: RobustClassifier, loader: Any) -> None:
        """Check that images can be drawn from all test images, and that the folder can be written."""
        require_volume(NAME, self.epsilons, module)
        limit = trainer.limit_test_batches
        remedy = f"leave it out: {NAME} draws its images from all test images; set their number by {NAME}.num_samples"
        require(isinstance(limit, float) and limit == 1.0, "trainer.limit_test_batches", limit, remedy)
        images = getattr(module.data_module, "test_images", None)
        require(images is None, "data.test_images", images, remedy)
        count = num_images(loader)
        remedy = f"{NAME} draws its images from all; give a loader with a length"
        require(count is not None, "data", "a test loader without a length", remedy)
        remedy = f"the test has {count} images; give at most that"
        require((self.num_samples or 1) <= (count or 0), f"{NAME}.num_samples", self.num_samples, remedy)
        if self.state_folder is not None:
            check_writable(self.state_folder, f"{NAME}.state_folder")

    def on_start(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        """Choose the images."""
        super().on_start(stage, trainer, module)
        count = num_images(tested_loader(trainer)) or 0
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[: self.num_samples]
        self._chosen = torch.zeros(count, dtype=torch.bool).index_fill_(0, drawn, True)

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Bound the network once, before long evaluations run."""
        try_verifier(f"{NAME}.search.init_args.verifier", self._module_search(module).verifier, module, Box(x, x), y)

    def _module_search(self, module: RobustClassifier) -> LargestCertifiedBox:
        """The search; it uses the module's verifier by default, unless that is a ``FeedForwardVerifier``."""
        if isinstance(module.verifier, FeedForwardVerifier):
            return self.search
        return self.search.by_default(module.verifier)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Store the chosen images."""
        last, count = int(self.indices.max()), len(self._chosen)
        remedy = f"the test has {count} images; {NAME} needs a data set of these alone, such as torch.utils.data.Subset"
        require(last < count, "data", f"index {last}", remedy)
        chosen = self._chosen.to(x.device)[self.indices]
        self.update("images", partial(Gathered, ["image", "label"]), self.indices[chosen], x[chosen], y[chosen])

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """Search for the largest box of each image, and compare its volume with those of the epsilons."""
        with torch.inference_mode(False), torch.no_grad():
            images = {name: column.clone() for name, column in self.rows("images").items()}
            self._table = self._search_all(module, images)
        return self._summary(self._table, module.epsilon)

    def write(self, stage: Stage, module: RobustClassifier, values: dict[str, Tensor]) -> None:
        """Write the table of all images."""
        path = self.folder / "certified_volume" / f"{stage}.csv"
        labels = self.rows("images")["label"]
        if module.trainer.is_global_zero:
            _write(self._table, labels, path)
        rank_zero_info(f"Certified volumes: {path}")

    def _search_all(self, module: RobustClassifier, images: Rows) -> Rows:
        """Search this process's part of the images, and return the rows of all images in the data's order."""
        trainer, device = module.trainer, module.device
        state = SavedRows(f"{NAME}.state_folder", self.state_folder, self._depends_on(module, images))
        completed = self._completed(trainer, state)
        remaining = ~torch.isin(images["index"].cpu(), completed.get("index", torch.zeros(0, dtype=torch.long)))
        own_rows = remaining.nonzero().squeeze(1)[trainer.global_rank :: trainer.world_size].to(device)
        rows = completed if trainer.is_global_zero else {}
        searched = 0
        with self._progress(trainer, len(own_rows)) as bar:
            for batch in torch.split(own_rows, self.batch_size) if len(own_rows) > 0 else ():
                new_rows = self._search(module, {name: column[batch] for name, column in images.items()}, bar)
                rows = concatenate([rows, new_rows])
                state.write(rows, trainer.global_rank)
                searched += len(batch)
                bar.set_completed(searched)
        table = Gathered(COLUMNS).to(device)
        empty = torch.zeros(0, dtype=torch.float64)
        indices = rows.get("index", empty.long())
        table.update(indices.to(device), *(rows.get(name, empty).to(device) for name in COLUMNS))
        return table.rows()

    def _completed(self, trainer: Trainer, state: SavedRows) -> Rows:
        """The rows that process 0 reads from the folder, broadcast since processes may not share a file system."""
        completed: Rows = {}
        refusal = None
        if trainer.is_global_zero:
            try:
                completed = state.read()
                state.write(completed, 0)  # before the processes overwrite files of a run with more or fewer processes
            except SettingError as error:  # raised after the broadcast, for which the other processes wait
                refusal = error
        completed, refused = trainer.strategy.broadcast((completed, refusal is not None))
        if refusal is not None:
            raise refusal
        require(not refused, f"{NAME}.state_folder", str(self.state_folder), "process 0 refuses it; see its error")
        return completed

    def _search(self, module: RobustClassifier, images: Rows, bar: _Bar) -> Rows:
        x, y = images["image"], images["label"]
        search = self._module_search(module)
        largest = search(module.classifier, x, y, partial(bar.step, len(x) / search.steps))
        capped = largest.budgets.clamp(max=1.0)  # a certified subset; a threat model's images are in [0, 1] anyway
        with global_seed(x.device, self.seed, module.global_rank), full_precision(x.device):
            misclassified = module(self._attack(module.classifier, PixelBox(capped), x, y)).argmax(1) != y
        verifier = type(search.verifier).__name__
        check_order(largest.certified, misclassified, images["index"], verifier, "in their certified boxes")
        columns = {
            "index": images["index"],
            "certified": largest.certified.double(),
            "log_epsilon": _log_epsilon(largest.budgets),
            "log_epsilon_capped": _log_epsilon(capped),
        }
        return {name: column.cpu() for name, column in columns.items()}

    def _depends_on(self, module: RobustClassifier, images: Rows) -> dict[str, Any]:
        """The values on which the rows depend, by the name that an error message uses."""
        search = self._module_search(module)
        return {
            "search settings": described(search),
            "own code": own_code(search, module.classifier) or None,  # as in early files, which have no such entry
            "network": structure(module.classifier),
            "weights": weights_of(module.classifier),
            "images": digest([images["index"], images["image"], images["label"]]),
        }

    def _summary(self, table: Rows, own_epsilon: float) -> dict[str, Tensor]:
        """The metrics of the rows of all images."""
        certified, count = table["certified"].double(), len(table["index"])
        boxes = table["log_epsilon"][certified > 0].exp()
        values = {
            "certified_volume/certified": certified.mean(),
            "certified_volume/epsilon": boxes.mean() if len(boxes) > 0 else certified.new_tensor(0.0),
            "certified_volume/samples": certified.new_tensor(float(count)),
        }
        for epsilon in self.epsilons or [own_epsilon]:
            target = certified.new_tensor(epsilon).log()
            for column, volume in (("log_epsilon", "volume"), ("log_epsilon_capped", "capped_volume")):
                name = f"certified_accuracy/{volume}_{epsilon:g}"
                accuracy = (table[column] >= target).double().mean()
                ends = wilson_interval(float(accuracy), count, len(self._chosen), self.confidence)
                values[name] = accuracy
                values |= {f"{name}/{end}": target.new_tensor(e) for end, e in zip(("low", "high"), ends, strict=True)}
        return values

    def _progress(self, trainer: Trainer, images: int) -> _Bar:
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        return _Bar(images, shown=shown)


class _Bar(Progress):
    """A progress bar over this process's images, which advances with each step of the search."""

    def __init__(self, images: int, *, shown: bool) -> None:
        columns = (TextColumn("Certified volume"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # a separate console, since Lightning's bar has stopped and a bar on its console would not be drawn
        super().__init__(*columns, console=Console(), disable=not shown)
        self._images = self.add_task("", total=images)

    def step(self, images: float) -> None:
        """Advance by a fraction of an image."""
        self.advance(self._images, images)

    def set_completed(self, images: int) -> None:
        """Set the number of completed images."""
        self.update(self._images, completed=images)


def _log_epsilon(budgets: Tensor) -> Tensor:
    """Mean log budget (B,) of each example, in float64; minus infinity without a box."""
    return budgets.double().log().flatten(1).mean(1)


def _write(table: Rows, labels: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sample", "label", "certified", "epsilon", "epsilon_capped"))
        rows = zip(table["index"].tolist(), labels.tolist(), *(table[name].tolist() for name in COLUMNS), strict=True)
        for index, label, certified, log_epsilon, capped in rows:
            epsilons = torch.tensor([log_epsilon, capped], dtype=torch.float64).exp().tolist()
            writer.writerow((index, label, int(certified), *epsilons))
