"""Random numbers of a library that draws for whole batches, made the same for every image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS: tuple[Callable[..., Tensor], ...] = (torch.rand, torch.randn, torch.randn_like)


class SharedDraws(TorchFunctionMode):
    """Let each draw of torch for a batch of images (B, C, H, W) be one draw (1, C, H, W) for all of them.

    What an attack draws for an image then depends neither on the other images of its batch nor on their number.
    Draws of other dimensions stay as they are. So do those of the network, if it is wrapped by :meth:`outside`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._in_network = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _DRAWS and not self._in_network:
            shape = _shape(args)
            if len(shape) == 4:
                like = {"dtype": args[0].dtype, "device": args[0].device} if func is torch.randn_like else {}
                draw = torch.randn if func is torch.randn_like else func
                return draw((1, *shape[1:]), **like, **(kwargs or {})).expand(shape).clone()
        return func(*args, **(kwargs or {}))

    def outside(self, network: nn.Module) -> nn.Module:
        """The network, whose forward pass draws as it does without this mode."""
        return _Outside(self, network)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Leave draws as they are."""
        self._in_network = True
        try:
            yield
        finally:
            self._in_network = False


class _Outside(nn.Module):
    def __init__(self, draws: SharedDraws, network: nn.Module) -> None:
        super().__init__()
        self._draws, self.network = draws, network

    def forward(self, x: Tensor) -> Tensor:
        with self._draws.in_network():
            logits: Tensor = self.network(x)
        return logits


def _shape(args: Sequence[Any]) -> tuple[int, ...]:
    """Shape of the draw that these arguments of ``rand``, ``randn`` or ``randn_like`` ask for."""
    first = args[0]
    if isinstance(first, Tensor):
        return tuple(first.shape)
    return tuple(args) if isinstance(first, int) else tuple(first)
