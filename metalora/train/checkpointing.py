"""Activation checkpointing of a network's blocks."""

from torch import nn

from metalora.adapters.layer import AdaptedLayer


def checkpoint_blocks(network: nn.Module) -> None:
    """Let the network's repeated blocks recompute their activations in the backward pass, in place.

    A block is a member of a ``Sequential`` or ``ModuleList`` with two or more adapted layers, and none of its
    own members is one: a residual block, a transformer block.
    """
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    members = {
        child
        for parent in network.modules()
        if isinstance(parent, nn.Sequential | nn.ModuleList)
        for child in parent.children()
        if sum(isinstance(module, AdaptedLayer) for module in child.modules()) >= 2
    }
    blocks = {block for block in members if not any(inner in members for inner in list(block.modules())[1:])}
    apply_activation_checkpointing(
        network, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda module: module in blocks
    )
