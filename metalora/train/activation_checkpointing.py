"""Activation checkpointing of a network's blocks."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from metalora.adapters.layer import AdaptedLayer
from metalora.adapters.seed_slot import SeedSlot


def checkpoint_blocks(network: nn.Module) -> None:
    """Make a network's repeated blocks recompute their activations in the backward pass, in place.

    A block is a member of a ``Sequential`` or ``ModuleList`` that has two or more adapted layers and contains no
    smaller such block: a residual block or a transformer block.
    """
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    members = {
        child: layers[0].slot
        for parent in network.modules()
        if isinstance(parent, nn.Sequential | nn.ModuleList)
        for child in parent.children()
        if len(layers := [module for module in child.modules() if isinstance(module, AdaptedLayer)]) >= 2
    }
    blocks = {block for block in members if not any(inner in members for inner in list(block.modules())[1:])}
    apply_activation_checkpointing(
        network,
        checkpoint_wrapper_fn=lambda block: checkpoint_wrapper(block, checkpoint_fn=_run, slot=members[block]),
        check_fn=lambda module: module in blocks,
    )


def _run(block: nn.Module, *args: Any, slot: SeedSlot, **kwargs: Any) -> Any:
    """Run a block, and run it again in the backward pass, wherever that takes place, as the same call."""
    call = slot.call

    def run(*args: Any, **kwargs: Any) -> Any:
        with slot.within(call):
            return block(*args, **kwargs)

    compiled = torch.compiler.is_compiling()  # then the seeds are part of the graph
    return checkpoint(block if compiled else run, *args, use_reentrant=False, **kwargs)
