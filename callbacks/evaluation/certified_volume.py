"""Finds the largest certified volume of test images, after Liu et al. 2019, on any number of processes."""

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

from callbacks._stages import Stage
from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.order import check_order
from callbacks.evaluation.saved_rows import Rows, SavedRows, digest, joined, plain
from callbacks.evaluation.verifiers import module_verifier, try_verifier
from lightning_modules.base import RobustClassifier
from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, LargestCertifiedBox
from robust.bounds.verifier import full_precision
from robust.errors import SettingError, require
from robust.metrics import Gathered
from robust.metrics.confidence import wilson_interval
from robust.random import global_seed
from robust.threat_models import Box, PixelBox

NAME = "CertifiedVolume"
CHECK_STEPS = 5
COLUMNS = ["certified", "log_epsilon", "log_epsilon_capped"]


class CertifiedVolume(Evaluation):
    """The largest box around each test image that is certified, and the verified error by its volume.

    An example is verified at epsilon where the volume of the box that was found, prod_i epsilon_i, is at least
    epsilon^n. The images are a random part of the test data, the same for every model, process and batch size. Logged:

    - ``test/verified_error/certified_volume``: fraction of images not verified at the module's epsilon, with
      ``/low`` and ``/high``: Wilson's interval for the whole test data; ``/epsilon_<size>`` for other sizes
    - ``test/verified_error/certified_volume_capped``: the same with no budget counted above 1
    - ``test/certified_volume/certified``: fraction of images with any certified box
    - ``test/certified_volume/epsilon``: mean over those of the uniform budget of the same volume
    - ``test/certified_volume/samples``: number of images

    Written to ``certified_volume/test.csv`` in the log folder: each image's ``epsilon``, the uniform budget of the same
    volume. An interrupted evaluation goes on where it was, by the images done, if it has a ``state_folder``; the
    epsilons can be changed afterwards without any search.

    Source: contextual budgets, Sec. 4.1 ("By Liu et al."), which leaves settings and number of images open.

    Args:
        search: how the box is found; without a verifier of its own by that of the module, if it is not the one for
            feed-forward networks, else by CROWN-IBP.
        samples: number of images; null for all.
        epsilons: sizes in (0, 1] that volumes are compared with; by default the module's epsilon.
        batch_size: images that a process searches at a time.
        seed: of the choice of images.
        confidence: of the interval.
        state_folder: where what is done is kept; one folder for each checkpoint and search.

    Raises:
        SettingError: if a setting is out of its range, there are fewer images, the test is limited to a part of the
            images, the network cannot be bounded, or ``state_folder`` holds results of another checkpoint, search or
            choice of images.
        ContradictionError: if an image is misclassified in its certified box, as it is or under a short attack.
    """

    stages = ("test",)

    def __init__(
        self,
        search: LargestCertifiedBox | None = None,
        samples: int | None = 500,
        epsilons: list[float] | None = None,
        batch_size: int = 50,
        seed: int = 0,
        confidence: float = 0.95,
        state_folder: str | None = None,
    ) -> None:
        super().__init__(seed)
        require(samples is None or samples >= 1, f"{NAME}.samples", samples, "give at least 1, or null for all images")
        require(batch_size >= 1, f"{NAME}.batch_size", batch_size, "give at least 1")
        require(0 < confidence < 1, f"{NAME}.confidence", confidence, "give a probability in (0, 1)")
        for epsilon in epsilons or []:
            require(0 < epsilon <= 1, f"{NAME}.epsilons", epsilon, "give sizes in (0, 1], in pixel units")
        self.search = LargestCertifiedBox() if search is None else search
        self._attack = PGD(CHECK_STEPS, early_stop=True)
        self.samples, self.epsilons, self.batch_size, self.confidence = samples, epsilons, batch_size, confidence
        self.state_folder = None if state_folder is None else Path(state_folder)
        self._chosen = torch.zeros(0, dtype=torch.bool)
        self._table: Rows = {}

    def on_start(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        """Choose the images."""
        super().on_start(stage, trainer, module)
        limit = trainer.limit_test_batches
        remedy = f"leave it out: the images are drawn from all; {NAME}.samples is their number"
        require(isinstance(limit, float) and limit == 1.0, "trainer.limit_test_batches", limit, remedy)
        loader: Any = trainer.test_dataloaders
        count = len((loader[0] if isinstance(loader, list) else loader).dataset)
        samples = count if self.samples is None else self.samples
        require(samples <= count, f"{NAME}.samples", samples, f"the test has {count} images; give at most that")
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[:samples]
        self._chosen = torch.zeros(count, dtype=torch.bool).index_fill_(0, drawn, True)

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Bound the network once, before other evaluations have done their work."""
        try_verifier(f"{NAME}.search.init_args.verifier", self._own_search(module).verifier, module, Box(x, x), y)

    def _own_search(self, module: RobustClassifier) -> LargestCertifiedBox:
        """The search; without a verifier of its own by the module's, unless that is for feed-forward networks too."""
        own = module_verifier(module)
        return self.search if own is None or isinstance(own, FeedForwardVerifier) else self.search.by_default(own)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Keep the chosen images."""
        chosen = self._chosen.to(x.device)[self.indices]
        self.update("images", partial(Gathered, ["image", "label"]), self.indices[chosen], x[chosen], y[chosen])

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """Search the images' boxes, and compare their volumes with epsilons."""
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
        """The table of all images, in the order of the data and equal in all processes; this one searches its part."""
        trainer, device = module.trainer, module.device
        state = SavedRows(f"{NAME}.state_folder", self.state_folder, self._depends_on(module, images))
        done = self._done(trainer, state)
        remaining = ~torch.isin(images["index"].cpu(), done.get("index", torch.zeros(0, dtype=torch.long)))
        own = remaining.nonzero().squeeze(1)[trainer.global_rank :: trainer.world_size].to(device)
        rows = done if trainer.is_global_zero else {}
        finished = 0
        with self._progress(trainer, len(own)) as bar:
            for batch in torch.split(own, self.batch_size) if len(own) > 0 else ():
                searched = self._search(module, {name: column[batch] for name, column in images.items()}, bar)
                rows = joined([rows, searched])
                state.write(rows, trainer.global_rank)
                bar.reach(finished := finished + len(batch))
        table = Gathered(COLUMNS).to(device)
        empty = torch.zeros(0, dtype=torch.float64)
        indices = rows.get("index", empty.long())
        table.update(indices.to(device), *(rows.get(name, empty).to(device) for name in COLUMNS))
        return table.rows()

    def _done(self, trainer: Trainer, state: SavedRows) -> Rows:
        """What process 0 finds in the folder, in all processes; they may not share it."""
        done: Rows = {}
        refusal = None
        if trainer.is_global_zero:
            try:
                done = state.read()
                state.write(done, 0)  # before any process writes over what another number of them had done
            except SettingError as error:  # the others would wait for the broadcast
                refusal = error
        done, refused = trainer.strategy.broadcast((done, refusal is not None))
        if refusal is not None:
            raise refusal
        require(not refused, f"{NAME}.state_folder", str(self.state_folder), "process 0 refuses it and says why")
        return done

    def _search(self, module: RobustClassifier, images: Rows, bar: _Bar) -> Rows:
        x, y = images["image"], images["label"]
        search = self._own_search(module)
        largest = search(module.classifier, x, y, partial(bar.step, len(x) / search.steps))
        capped = largest.budgets.clamp(max=1.0)  # a part of what is certified, as threat models are cut to [0, 1]
        with global_seed(x.device, self.seed, module.global_rank), full_precision(x.device):
            misclassified = module(self._attack(module.classifier, PixelBox(capped), x, y)).argmax(1) != y
        verifier = type(search.verifier).__name__
        check_order(largest.certified, misclassified, images["index"], verifier, "in the box that it found")
        columns = {
            "index": images["index"],
            "certified": largest.certified.double(),
            "log_epsilon": _log_epsilon(largest.budgets),
            "log_epsilon_capped": _log_epsilon(capped),
        }
        return {name: column.cpu() for name, column in columns.items()}

    def _depends_on(self, module: RobustClassifier, images: Rows) -> dict[str, Any]:
        """What the rows depend on, by the name that an error gives it."""
        return {
            "search settings": plain(self._own_search(module)),
            "weights": digest(module.classifier.state_dict().values()),
            "images": digest([images["index"], images["image"], images["label"]]),
        }

    def _summary(self, table: Rows, own_epsilon: float) -> dict[str, Tensor]:
        """The metrics, from a table of all images."""
        certified, count = table["certified"].double(), len(table["index"])
        boxes = table["log_epsilon"][certified > 0].exp()
        values = {
            "certified_volume/certified": certified.mean(),
            "certified_volume/epsilon": boxes.mean() if len(boxes) > 0 else certified.new_tensor(0.0),
            "certified_volume/samples": certified.new_tensor(float(count)),
        }
        for epsilon in self.epsilons or [own_epsilon]:
            suffix = "" if epsilon == own_epsilon else f"/epsilon_{epsilon:g}"
            target = certified.new_tensor(epsilon).log()
            for column in ("log_epsilon", "log_epsilon_capped"):
                name = f"verified_error/certified_volume{column.removeprefix('log_epsilon')}{suffix}"
                failed = (table[column] < target).double().mean()
                ends = wilson_interval(float(failed), count, len(self._chosen), self.confidence)
                values[name] = failed
                values |= {f"{name}/{end}": failed.new_tensor(e) for end, e in zip(("low", "high"), ends, strict=True)}
        return values

    def _progress(self, trainer: Trainer, images: int) -> _Bar:
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        return _Bar(images, shown=shown)


class _Bar(Progress):
    """A progress bar over this process's images, steps of the search counted as parts of them."""

    def __init__(self, images: int, *, shown: bool) -> None:
        columns = (TextColumn("Certified volume"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # a console of its own, for inside Lightning's bar, which rests now, it would rest too
        super().__init__(*columns, console=Console(), disable=not shown)
        self._images = self.add_task("", total=images)

    def step(self, images: float) -> None:
        """Go on by a part of an image."""
        self.advance(self._images, images)

    def reach(self, images: int) -> None:
        """So many images are done."""
        self.update(self._images, completed=images)


def _log_epsilon(budgets: Tensor) -> Tensor:
    """Mean log budget (B,) of each example, in float64; minus infinity where there is no box."""
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
