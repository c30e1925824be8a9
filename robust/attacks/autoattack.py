"""AutoAttack (Croce & Hein 2020), run by pyautoattack, whose attacks are the authors' own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust.attacks._crafting import crafting
from robust.errors import SettingError, require
from robust.threat_models import L1Ball, L2Ball, LinfBall, ThreatModel

_NORMS: dict[type, str] = {LinfBall: "Linf", L2Ball: "L2", L1Ball: "L1"}


class AutoAttack:
    """The parameter-free ensemble by which published robust accuracies are compared; the network is in eval mode.

    Needs the extra ``eval``. The norm and the radius are the threat model's. At most K - 1 targets are aimed at, and
    batches are independent of each other, so that processes can share the work. pyautoattack's own state file cannot
    be read back (0.2.0), so this class keeps one: after each attack of the ensemble.

    Args:
        version: ``"standard"`` (APGD-CE, targeted APGD and FAB, Square), or ``"rand"`` for networks that draw random
            numbers (APGD-CE and APGD-DLR over 20 draws).
        batch_size: examples that are attacked at a time.
        seed: of its random starts; torch's own generators are left as they are.
        state_folder: where what is done is kept, a file for each call, named after its data, network and settings:
            an interrupted evaluation that is begun anew goes on behind the last attack that it finished.

    Raises:
        SettingError: if a setting is out of its range or pyautoattack is missing; on use, if the threat model is a
            per-pixel box, there are fewer than 4 classes (3 for ``"rand"``), the network gives probabilities, or it is
            random and the version is not ``"rand"``.
    """

    def __init__(
        self,
        version: Literal["standard", "rand"] = "standard",
        batch_size: int = 250,
        seed: int = 0,
        state_folder: str | Path | None = None,
    ) -> None:
        require(version in ("standard", "rand"), "version", version, "give standard or rand")
        require(batch_size >= 1, "batch_size", batch_size, "give at least 1")
        try:
            import pyautoattack
        except ModuleNotFoundError:
            remedy = 'install it: uv sync --extra eval, or pip install "robust-lightning[eval]"'
            raise SettingError("AutoAttack", "no package pyautoattack", remedy) from None
        self._library: Any = pyautoattack
        self.version = version
        self.batch_size = batch_size
        self.seed = seed
        self.state_folder = None if state_folder is None else Path(state_folder)

    def __call__(self, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
        """A misclassified image if one was found, else the image itself; (B, C, H, W).

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            threat_model: linf, l2 or l1 ball.
            x: images (B, C, H, W) in [0, 1], float32.
            y: labels (B,).
        """
        norm = next((norm for kind, norm in _NORMS.items() if isinstance(threat_model, kind)), None)
        kind = type(threat_model).__name__
        require(norm is not None, "threat_model", kind, "take APGD: AutoAttack knows linf, l2 and l1 balls")
        assert isinstance(threat_model, LinfBall | L2Ball | L1Ball)
        assert norm is not None
        epsilon = threat_model.epsilon
        with crafting(network, "eval"), _without_parameters(network), _undisturbed(x.device):
            x, y = x.clone(), y.clone()  # tensors of inference mode cannot enter a graph
            runner = self._runner(network, norm, epsilon, x)
            path = self._state_path(network, norm, epsilon, x, y)
            state = _load(path, x, network(x).argmax(1) == y)
            for attack in [name for name in runner.attacks_to_run if name not in state["done"]]:
                left = state["robust"].nonzero().squeeze(1)
                if len(left) == 0:
                    break
                self._attack(runner, attack, network, x[left], y[left], left, state)
                _save(path, state)
            found: Tensor = state["x_adv"]
            return found

    def _attack(
        self, runner: Any, attack: str, network: nn.Module, x: Tensor, y: Tensor, left: Tensor, state: dict[str, Any]
    ) -> None:
        """Run one attack of the ensemble on what is left, and note what it broke."""
        parts = {"apgd-t": runner.apgd_targeted, "fab-t": runner.fab, "square": runner.square}
        part = parts.get(attack, runner.apgd)
        part.seed = self.seed
        if part is runner.apgd:
            part.loss = attack.removeprefix("apgd-")
        for first in range(0, len(x), self.batch_size):
            batch = slice(first, first + self.batch_size)
            found = part.perturb(x[batch], y[batch])
            broken = network(found).argmax(1) != y[batch]
            places = left[batch][broken]
            state["x_adv"][places] = found[broken].detach()
            state["robust"][places] = False
        state["done"].append(attack)

    def _runner(self, network: nn.Module, norm: str, epsilon: float, x: Tensor) -> Any:
        """The library's object with this version's settings, for this network."""
        logits, again = network(x[: self.batch_size]), network(x[: self.batch_size])
        least = 3 if self.version == "rand" else 4
        classes = logits.shape[1]
        require(classes >= least, "version", self.version, f"take PGD or APGD: it needs at least {least} classes")
        summed = bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-5).all())
        require(not summed, "network", "outputs that sum to 1", "give a network whose outputs are logits")
        random = self.version != "rand" and not torch.allclose(logits, again, atol=1e-4)
        require(not random, "version", self.version, 'take "rand": two passes of this network differ')
        runner = self._library.AutoAttack(
            network, norm=norm, eps=epsilon, version=self.version, seed=self.seed, device=x.device
        )
        runner.fab.targeted = True
        for part in (runner.apgd_targeted, runner.fab):
            part.n_target_classes = min(part.n_target_classes, classes - 1)
        return runner

    def _state_path(self, network: nn.Module, norm: str, epsilon: float, x: Tensor, y: Tensor) -> Path | None:
        if self.state_folder is None:
            return None
        digest = hashlib.sha256(f"{self.version} {self.seed} {self.batch_size} {norm} {epsilon}".encode())
        for tensor in (x, y, *network.state_dict().values()):
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self.state_folder.mkdir(parents=True, exist_ok=True)
        return self.state_folder / f"autoattack-{digest.hexdigest()[:16]}.pt"


def _load(path: Path | None, x: Tensor, correct: Tensor) -> dict[str, Any]:
    """What is done, bool (B,) of what withstood it, and the images found (B, C, H, W)."""
    if path is not None and path.exists():
        state: dict[str, Any] = torch.load(path, map_location=x.device, weights_only=True)
        return state
    return {"done": [], "robust": correct, "x_adv": x.clone()}


def _save(path: Path | None, state: dict[str, Any]) -> None:
    if path is not None:
        unfinished = path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(path)  # a file that is there is whole


@contextmanager
def _without_parameters(network: nn.Module) -> Iterator[None]:
    """FAB calls ``backward``: keep its gradients out of the parameters."""
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Silence pyautoattack's log and give torch's generators, which it seeds, back as they were."""
    log = logging.getLogger("auto-attack")
    level = log.level
    log.setLevel(logging.CRITICAL)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        log.setLevel(level)
