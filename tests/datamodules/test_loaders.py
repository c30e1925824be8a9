"""Order of batches, exact evaluation and exact resumption, alone and through Lightning's Trainer."""

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pytorch_lightning.strategies import DDPStrategy

from datamodules import ImageDataModule
from datamodules.batches import ShardedBatches
from datamodules.loading import TensorImages
from robust.errors import SettingError
from tests.two_processes import forkserver

SIZES = {"train": 23, "val": 5, "test": 7}


def numbered(size):
    """Images of one pixel whose value is their index."""
    return TensorImages(torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1), torch.zeros(size).long(), 2)


def numbers(batch):
    return (batch.images.flatten() * 255).round().int().tolist()


class Numbered(ImageDataModule):
    num_classes = 2
    image_shape = (1, 1, 1)

    def load(self, split):
        return numbered(SIZES[split])


class Recorder(pl.LightningModule):
    """Records its images; with ``folder``, each process writes its records there."""

    def __init__(self, folder=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.folder = folder
        self.seen = []
        self.evaluated = []

    def training_step(self, batch, batch_idx):
        self.check_indices("train", batch, batch_idx)
        self.seen.append([self.current_epoch, batch_idx, numbers(batch)])
        return self.weight * batch.images.sum()

    def check_indices(self, split, batch, batch_idx):
        """The data module says which images the batch holds."""
        assert self.trainer.datamodule.indices(split, batch_idx).tolist() == numbers(batch)

    def validation_step(self, batch, batch_idx):
        self.check_indices("val", batch, batch_idx)
        if not self.trainer.sanity_checking:
            self.evaluated.append(numbers(batch))

    def test_step(self, batch, batch_idx):
        self.check_indices("test", batch, batch_idx)
        self.evaluated.append(numbers(batch))

    def predict_step(self, batch, batch_idx):
        self.check_indices("test", batch, batch_idx)
        return numbers(batch)

    def on_fit_end(self):
        if self.folder:
            notes = {"seen": self.seen, "evaluated": self.evaluated}
            Path(self.folder, f"{self.global_rank}.json").write_text(json.dumps(notes))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SaveEverywhere(pl.callbacks.Checkpoint):
    """Saves at every point where Lightning's ModelCheckpoint can."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, trainer, moment):
        if not trainer.sanity_checking:
            done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
            trainer.save_checkpoint(self.folder / f"{done}-{moment}.ckpt")

    def on_train_batch_start(self, trainer, *_):  # as save_on_exception
        self.save(trainer, "batch-start")

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch-end")

    def on_validation_end(self, trainer, *_):
        self.save(trainer, "validation-end")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch-end")


def make_trainer(**options):
    saves = any(isinstance(callback, pl.callbacks.Checkpoint) for callback in options.get("callbacks", []))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", enable_checkpointing=saves, **quiet, **({"devices": 1} | options))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # the test restores what seed_everything sets
        monkeypatch.setenv(name, "0")


def forked():
    """DDP whose processes need not import everything."""
    forkserver()
    return DDPStrategy(start_method="forkserver")


def fit(run_seed=0, data=None, ckpt_path=None, **options):
    pl.seed_everything(run_seed, verbose=False)
    module = Recorder()
    make_trainer(**options).fit(module, datamodule=data or Numbered(batch_size=4), ckpt_path=ckpt_path)
    return module.seen


def sampler(size, batch_size, *, shuffle, seed=0, epoch=0, processes=1, rank=0):
    batches = ShardedBatches(numbered(size), batch_size, shuffle=shuffle, seed=seed, num_replicas=processes, rank=rank)
    batches.set_epoch(epoch)
    return batches


def listed(batches):
    return [torch.as_tensor(indices) for indices in batches]


class TestShardedBatches:
    def test_no_tensor_goes_to_a_worker(self):
        """To send one takes a lock of PyTorch's: workers that are forked meanwhile wait for it for ever."""
        assert not any(isinstance(indices, torch.Tensor) for indices in sampler(8, 4, shuffle=True))

    @settings(deadline=None)
    @given(
        size=st.integers(1, 80),
        size_of_part=st.integers(1, 6),
        processes=st.integers(1, 3),
        seed=st.integers(0, 2**32 - 1),
        epoch=st.integers(0, 1000),
    )
    def test_training_is_the_same_with_any_number_of_processes(self, size, size_of_part, processes, seed, epoch):
        assume(size_of_part * processes <= size)
        kind = {"size": size, "batch_size": size_of_part * processes, "shuffle": True, "seed": seed, "epoch": epoch}
        alone = listed(sampler(**kind))
        shards = [listed(sampler(**kind, processes=processes, rank=rank)) for rank in range(processes)]
        assert all(len(part) == size_of_part for shard in shards for part in shard)
        for parts, whole in zip(zip(*shards, strict=True), alone, strict=True):
            assert torch.equal(torch.cat(parts), whole)
        seen = torch.cat(alone)
        assert len(alone) == size // (size_of_part * processes)
        assert len(seen.unique()) == len(seen)

    @settings(deadline=None)
    @given(size=st.integers(1, 80), size_of_part=st.integers(1, 6), processes=st.integers(1, 3))
    def test_evaluation_sees_each_image_once(self, size, size_of_part, processes):
        assume(size >= processes)
        kind = {"size": size, "batch_size": size_of_part * processes, "shuffle": False, "processes": processes}
        samplers = [sampler(**kind, rank=rank) for rank in range(processes)]
        shards = [listed(batches) for batches in samplers]
        assert sorted(torch.cat([torch.cat(shard) for shard in shards]).tolist()) == list(range(size))
        assert {len(shard) for shard in shards} == {len(samplers[0])}  # or collectives would hang
        for shard in shards:
            assert all(len(part) == size_of_part for part in shard[:-1])
            assert 1 <= len(shard[-1]) <= size_of_part + (processes > 1)

    def test_order_depends_on_seed_and_epoch(self):
        orders = [
            tuple(torch.cat(listed(sampler(40, 4, shuffle=True, seed=seed, epoch=epoch))).tolist())
            for seed in (0, 1, 2**31, 2**32 - 1)
            for epoch in range(3)
        ]
        assert len(set(orders)) == len(orders)

    @pytest.mark.parametrize(
        ("size", "batch_size", "shuffle", "processes", "message"),
        [
            (10, 4, True, 3, r"^data\.batch_size: got 4; .*multiple of 3"),
            (10, 4, False, 3, r"^data\.eval_batch_size: got 4; .*multiple of 3"),
            (10, 11, True, 1, r"^data\.batch_size: got 11; give at most 10"),
            (2, 6, False, 3, r"^number of processes: got 3; use at most 2"),
        ],
    )
    def test_impossible_batches(self, size, batch_size, shuffle, processes, message):
        with pytest.raises(SettingError, match=message):
            sampler(size, batch_size, shuffle=shuffle, processes=processes)


class TestTensorImages:
    def test_batch_is_bytes_over_255(self):
        images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
        batch = TensorImages(images, torch.arange(4), 4)[[3, 1]]
        assert torch.equal(batch.images, images[[3, 1]] / 255)
        assert batch.labels.tolist() == [3, 1]

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (torch.zeros(2, 1, 1, 1), torch.zeros(2).long(), "^images: .*uint8"),
            (torch.zeros(2, 1, 1).byte(), torch.zeros(2).long(), "^images: "),
            (torch.zeros(0, 1, 1, 1).byte(), torch.zeros(0).long(), "^images: .*at least one"),
            (torch.zeros(2, 1, 1, 1).byte(), torch.zeros(3).long(), r"^labels: .*int64 of shape \(2,\)"),
            (torch.zeros(2, 1, 1, 1).byte(), torch.zeros(2), "^labels: .*int64"),
            (torch.zeros(2, 1, 1, 1).byte(), torch.tensor([0, 5]), r"^labels: got \(0, 5\); .*0 to 4"),
            (torch.zeros(2, 1, 1, 1).byte(), torch.tensor([-1, 0]), "^labels: "),
        ],
    )
    def test_malformed(self, images, labels, message):
        with pytest.raises(SettingError, match=message):
            TensorImages(images, labels, 5)


@pytest.mark.thorough
class TestResume:
    """A run resumed from any checkpoint has exactly the remaining batches of the uninterrupted run."""

    # each checkpoint of the plain run; a third of the others', where each kind is; a few with workers
    @pytest.mark.parametrize("num_workers", [0, 2])
    @pytest.mark.parametrize(
        "options",
        [
            {"max_epochs": 2},
            {"max_epochs": 2, "limit_val_batches": 0},
            {"max_epochs": 2, "limit_train_batches": 3},
            {"max_epochs": 2, "val_check_interval": 2},
            {"max_epochs": 2, "accumulate_grad_batches": 2},
            {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1},
            {"max_steps": 8},
        ],
        ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
    )
    def test_any_checkpoint(self, tmp_path, options, num_workers):
        def data():
            return Numbered(batch_size=4, num_workers=num_workers)

        whole = fit(data=data(), callbacks=[SaveEverywhere(tmp_path)], **options)
        checkpoints = sorted(tmp_path.iterdir())
        for path in checkpoints[:: 10 if num_workers else 1 if options == {"max_epochs": 2} else 3]:
            done = int(path.name.split("-")[0])
            assert fit(run_seed=7, data=data(), ckpt_path=path, **options) == whole[done:], path.name

    def test_earlier_batches_are_not_loaded_again(self, tmp_path, monkeypatch):
        fit(max_epochs=2, callbacks=[SaveEverywhere(tmp_path)])
        loads = []
        load = TensorImages.raw
        monkeypatch.setattr(TensorImages, "raw", lambda self, i: loads.append(len(i)) or load(self, i))
        fit(max_epochs=1, limit_val_batches=0, ckpt_path=tmp_path / "3-batch-end.ckpt")
        assert len(loads) == 2

    def test_other_batches_inside_an_epoch_are_refused(self, tmp_path):
        fit(max_epochs=2, callbacks=[SaveEverywhere(tmp_path)])
        other = {"data": Numbered(batch_size=5), "max_epochs": 2}
        with pytest.raises(SettingError, match=r"^data\.batch_size: .*'batch_size': 5.*'batch_size': 4"):
            fit(ckpt_path=tmp_path / "3-batch-end.ckpt", **other)
        assert len(fit(ckpt_path=tmp_path / "5-epoch-end.ckpt", **other)) == 4  # between epochs it may change


class TestSeed:
    def test_default_is_the_seed_of_the_run(self):
        assert fit(run_seed=3, max_epochs=1) == fit(run_seed=5, max_epochs=1, data=Numbered(batch_size=4, seed=3))
        assert fit(run_seed=3, max_epochs=1) != fit(run_seed=4, max_epochs=1)

    def test_loaders_draw_nothing_from_the_global_generator(self):
        data = Numbered(batch_size=4)
        before = torch.get_rng_state()
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert len(list(loader)) == len(loader)
        assert torch.equal(torch.get_rng_state(), before)

    def test_loader_outside_training_gives_all_batches(self):
        data = Numbered(batch_size=4)
        lengths = []

        class Look(pl.Callback):
            def on_train_batch_end(self, *_):
                lengths.append(len(list(data.train_dataloader())))

        fit(data=data, max_epochs=2, callbacks=[Look()])
        assert set(lengths) == {5}


class TestTrainer:
    def test_evaluation_and_prediction_give_all_images_in_order(self):
        data = Numbered(eval_batch_size=3)
        module = Recorder()
        batches = make_trainer().predict(module, datamodule=data)
        assert batches == [[0, 1, 2], [3, 4, 5], [6]]
        make_trainer().test(module, datamodule=data, verbose=False)
        make_trainer().validate(module, datamodule=data, verbose=False)
        assert module.evaluated == [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2], [3, 4]]

    def test_limits(self):
        data = Numbered(batch_size=4, eval_batch_size=3)
        assert len(fit(data=data, max_epochs=2, limit_train_batches=2)) == 4
        assert make_trainer(limit_predict_batches=2).predict(Recorder(), datamodule=data) == [[0, 1, 2], [3, 4, 5]]

    def test_overfit_batches_is_refused(self):
        with pytest.raises(SettingError, match=r"^trainer\.overfit_batches: .*trainer\.limit_train_batches"):
            fit(overfit_batches=1, max_epochs=1)

    @pytest.mark.thorough
    def test_two_processes_equal_one(self, tmp_path):
        alone = fit(max_epochs=2)
        data = Numbered(batch_size=4, eval_batch_size=2)
        pl.seed_everything(0, verbose=False)
        trainer = make_trainer(devices=2, strategy=forked(), max_epochs=2)
        trainer.fit(Recorder(folder=str(tmp_path)), datamodule=data)
        first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
        pairs = zip(first["seen"], second["seen"], strict=True)
        assert [[epoch, index, own + other[2]] for (epoch, index, own), other in pairs] == alone
        assert first["evaluated"] == [[0], [2, 4]] * 2
        assert second["evaluated"] == [[1], [3]] * 2

    @pytest.mark.thorough
    def test_three_processes_see_each_image_once(self, tmp_path):
        data = Numbered(batch_size=6, eval_batch_size=3)
        pl.seed_everything(0, verbose=False)
        trainer = make_trainer(devices=3, strategy=forked(), max_epochs=1)
        trainer.fit(Recorder(folder=str(tmp_path)), datamodule=data)
        notes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
        trained = [image for note in notes for _, _, batch in note["seen"] for image in batch]
        assert len(trained) == len(set(trained)) == 18  # of 23: three batches of 6, without the incomplete one
        assert sorted(image for note in notes for batch in note["evaluated"] for image in batch) == list(range(5))


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("eval_batch_size", -1), ("num_workers", -1), ("seed", 2**32), ("seed", -1)],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(SettingError, match=f"^data.{name}: got"):
        Numbered(**{name: value})


def test_wrong_image_shape():
    class Wide(Numbered):
        image_shape = (3, 1, 1)

    with pytest.raises(SettingError, match=r"^train images: got \(1, 1, 1\)"):
        Wide().setup("fit")
