"""Networks that are larger than a device: FSDP2, torch's `fully_shard`.

Each parameter becomes a DTensor, of which a rank holds some rows; its gradient arrives averaged.
Checkpoints know nothing of it: they hold whole tensors, written by one rank each, and go on with
any number of ranks, sharded or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.nn.backbones.encoder import Encoder


def shard(method: nn.Module, device: torch.device) -> None:
    """Shards a method's networks over the ranks, in place: encoders block by block.

    A block's parameters are whole on a rank only while the block computes.

    Raises:
        RayclError: the method has parameters that belong to none of its networks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if own := [name for name, _ in method.named_parameters(recurse=False)]:
        raise RayclError(
            f"trainer.sharded: {type(method).__name__} has parameters outside of its networks "
            f"({', '.join(own)}), which are not sharded; leave the field out"
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for network in method.children():
        if not any(True for _ in network.parameters()):
            continue
        if isinstance(network, Encoder):
            for block in blocks(network):
                fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        if isinstance(network, Encoder):
            register_fsdp_forward_method(network, "maps")


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members with parameters of the outermost sequences in a module, in its order."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from (part for part in child if any(True for _ in part.parameters()))
        else:
            yield from blocks(child)


def is_sharded(tensor: Any) -> bool:
    """Whether this rank holds but a part of a tensor."""
    return hasattr(tensor, "full_tensor")  # without an import that takes a second


def local(tensor: Any) -> Tensor:
    """What this rank holds of a tensor."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def whole(value: Any) -> Any:
    """Tensors of nested dicts with all their rows; to be called on all ranks alike."""
    if isinstance(value, Mapping):
        return {key: whole(entry) for key, entry in value.items()}
    return value.full_tensor() if is_sharded(value) else value


def like(value: Tensor, target: Any) -> Tensor:
    """A whole tensor as `target` is: this rank's part of it where that one is sharded."""
    if not is_sharded(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(target.device)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads whole tensors into a module that may be sharded."""
    here = module.state_dict()
    module.load_state_dict({k: like(v, here[k]) if k in here else v for k, v in state.items()})


def exchange(method: nn.Module, now: bool) -> None:
    """Says whether the backward passes to come average the gradients of what is sharded."""
    for module in method.modules():
        if switch := getattr(module, "set_requires_gradient_sync", None):
            switch(now, recurse=False)
