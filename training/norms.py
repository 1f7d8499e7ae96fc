"""What some layers need on some devices: batch norms over several processes, gradients that bfloat16 makes slow."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning_fabric import Fabric
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from mcdrl_rt.ops import at_least_float32


def synchronise_norms(method: Any, device: torch.device) -> Any:
    """Make every batch norm of ``method`` normalise with the whole batch's statistics; names of weights stay.

    On GPUs this is torch's SyncBatchNorm; on CPUs, where that does not run, a plain form of the same.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(method)
    for parent in list(method.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _SharedNorm(child))
    return method


def avoid_slow_gradients(method: nn.Module, fabric: Fabric) -> None:
    """On CPUs, keep strided depthwise convolutions in float32: in bfloat16 their gradient takes ten times as long."""
    if fabric.device.type != "cpu" or fabric.strategy.precision.precision != "bf16-mixed":
        return
    for module in method.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1:
            module.forward = functools.partial(_in_float32, module.forward)  # type: ignore[method-assign]


def _in_float32(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return forward(x.float())


class _Sum(torch.autograd.Function):
    """Sum over all processes; each one's share gets the gradient of all."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class _SharedNorm(nn.BatchNorm2d):
    """``norm`` with statistics over all processes, each of which holds as many pixels."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.after = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]  # of timm's fused norm

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            world = dist.get_world_size()
            exact = at_least_float32(x)
            mean = _Sum.apply(exact.mean(dim=(0, 2, 3))) / world
            variance = _Sum.apply((exact - mean.view(1, -1, 1, 1)).square().mean(dim=(0, 2, 3))) / world
            count = x.numel() / x.shape[1] * world
            self._remember(mean.detach(), variance.detach() * count / (count - 1))
            shape = (1, -1, 1, 1)
            scale = self.weight * (variance + self.eps).rsqrt()
            x = (x * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)
        else:
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        for step in self.after:
            x = step(x)
        return x

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.lerp_(value, self.momentum or 0.1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
