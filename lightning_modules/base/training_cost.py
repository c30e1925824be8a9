"""The cost of a training: passes through the networks and seconds, over all processes; a resumed run continues it."""

from __future__ import annotations

import time
from typing import Any, TypedDict

import torch
from torch import nn

from lightning_modules.base.processes import AcrossProcesses
from robust.networks import Autoencoder
from robust.passes import PassCounter


class TrainingCost(TypedDict):
    """Cost of a training so far.

    ``parameters`` is the number of parameters of all networks, ``seconds`` the time of training steps in the first
    process. ``passes`` has by network the number of ``forward`` and ``backward`` passes of one image, and, if there are
    several networks, the ``multiplications`` of a pass (0 if not known). ``forward_equivalents`` gives all passes as a
    number of forward passes through the first network (:mod:`robust.passes`).
    """

    parameters: int
    seconds: float
    passes: dict[str, dict[str, int]]
    forward_equivalents: float


class CountedTraining(AcrossProcesses):
    """A module that counts the cost of its training steps; its checkpoints contain the cost.

    Attributes:
        training_cost: cost of the finished or loaded training; None if it is not known, as with older checkpoints.
    """

    training_cost: TrainingCost | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._counter: PassCounter | None = None
        self._seconds, self._step_start = 0.0, 0.0
        self._cost_known = True

    def counted_networks(self) -> dict[str, nn.Module]:
        """The networks whose passes are counted, by name; by default all networks that have weights.

        The first network is the unit of all passes. An autoencoder counts as an encoder and a decoder.
        """
        networks: dict[str, nn.Module] = {}
        for name, network in self.named_children():
            if isinstance(network, Autoencoder):
                networks |= {f"{name}.encoder": network.encoder, f"{name}.decoder": network.decoder}
            elif any(True for _ in network.parameters()):
                networks[name] = network
        return networks

    def on_train_start(self) -> None:
        """Begin to count, starting from the checkpoint's cost."""
        super().on_train_start()
        self._counter = PassCounter(self.counted_networks())
        loaded, self._seconds = self.training_cost, 0.0
        if loaded is None or self.global_rank > 0:  # counts are summed over the processes
            return
        self._seconds = loaded["seconds"]
        for name, passes in loaded["passes"].items():
            if name in self._counter.forward:
                self._counter.forward[name], self._counter.backward[name] = passes["forward"], passes["backward"]
                if passes["multiplications"]:
                    self._counter.multiplications[name] = passes["multiplications"]

    def start_counting(self) -> None:
        """Count the passes and the time from now on."""
        self._step_start = time.perf_counter()
        if self._counter is not None:
            self._counter.start()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop counting until the next step."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.stop()
        if self._step_start:
            self._seconds += time.perf_counter() - self._step_start
            self._step_start = 0.0

    def on_train_end(self) -> None:
        """Store the cost, and remove the counters from the networks."""
        super().on_train_end()
        self._stop_counting()
        self.training_cost = self._cost()
        if self._counter is not None:
            self._counter.detach()
            self._counter = None

    def _cost(self) -> TrainingCost | None:
        """The cost so far, over all processes; all of them call this."""
        counter = self._counter
        if counter is None or not self._cost_known:
            return None
        counts = [*counter.forward.values(), *counter.backward.values(), counter.equivalents()]
        own = torch.tensor(counts, dtype=torch.float64, device=self.device)
        total = self.trainer.strategy.reduce(own, reduce_op="sum")
        assert isinstance(total, torch.Tensor)
        *passes, equivalents = total.tolist()
        names, running = list(counter.forward), time.perf_counter() - self._step_start if self._step_start else 0.0
        return {
            "parameters": sum(weight.numel() for weight in self.parameters()),
            "seconds": round(self._seconds + running, 3),
            "passes": {
                name: {
                    "forward": int(passes[index]),
                    "backward": int(passes[len(names) + index]),
                    "multiplications": counter.multiplications.get(name, 0),
                }
                for index, name in enumerate(names)
            },
            "forward_equivalents": round(equivalents, 1),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the cost."""
        super().on_save_checkpoint(checkpoint)
        if self._trainer is not None:
            checkpoint["training_cost"] = self.training_cost if self._counter is None else self._cost()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the cost; if the checkpoint has none, the cost of the resumed training is not known either."""
        super().on_load_checkpoint(checkpoint)
        self.training_cost = checkpoint.get("training_cost")
        self._cost_known = self.training_cost is not None
