"""Execution of a training: precision, memory format, fused convolutions, torch.compile, CUDA graphs."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.fused import refusal
from metalora.config import TrainConfig
from metalora.errors import UserError, given_as
from metalora.models.model import MetaLoRAModel
from metalora.train.activation_checkpointing import checkpoint_blocks

_log = logging.getLogger(__name__)


class Execution:
    """Runs the networks of a training as the settings say.

    Args:
        settings: The settings of the training.
        device: Device of the training.
        obstacles: The settings and callbacks that keep steps from being replayed as CUDA graphs.

    Attributes:
        dtype: The type that autocast computes in; None without autocast.
        speedups: How it is computed, reported as metrics; set by `prepare`.
    """

    def __init__(self, settings: TrainConfig, device: torch.device, obstacles: list[str]) -> None:
        self.settings = settings
        self.device = device
        self.obstacles = obstacles
        self.speedups: dict[str, float] = {}
        bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.dtype = torch.bfloat16 if bfloat16 else None

    def autocast(self, cache: bool = True) -> AbstractContextManager[Any]:
        """Compute in the configured precision within the block; without ``cache`` weights are cast at each use."""
        enabled = self.dtype is not None
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled, cache_enabled=cache)

    def in_layout(self, images: Tensor) -> Tensor:
        """Return images on the device in its memory format; other inputs stay as they are."""
        if self.settings.channels_last and images.is_cuda and images.dim() == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def prepare(
        self, module: nn.Module, model: MetaLoRAModel, example: Callable[[int], Tensor], count: int
    ) -> nn.Module:
        """Fuse, compile and capture a model's training module as the settings say, and return the module to run.

        Args:
            module: The training module: ``model.network`` and the head.
            model: The model.
            example: Makes so many samples, prepared for the network, on the device.
            count: The samples of a batch of this rank.

        Raises:
            UserError: a setting asks for something that this network or device cannot do.
        """
        if self.settings.activation_checkpointing:
            checkpoint_blocks(model.network.backbone)
        if self.settings.channels_last and self.device.type == "cuda":
            model.to(memory_format=torch.channels_last)
        fused = 0
        if self.fuses():
            module.train()
            fused = model.network.fuse(tuple(example(1).shape[1:]), self.dtype)
            if not fused and self.settings.kernel == "fused":
                raise UserError(
                    "kernel fused: this network has nothing that can be fused; kernel auto trains it as it is"
                )
        if self.settings.compile:
            module = cast(nn.Module, torch.compile(module))
        graphed = self.settings.cuda_graph
        if graphed and self.device.type != "cuda":
            raise UserError(
                f"cuda_graph needs a GPU, and this training has none (device: {self.device.type})"
                f"{given_as('cuda_graph')}"
            )
        if graphed and self.obstacles:
            raise UserError(f"cuda_graph cannot be combined with {', '.join(self.obstacles)}{given_as('cuda_graph')}")
        if graphed is None:
            graphed = fused > 0 and self.device.type == "cuda" and not self.obstacles
        if graphed:
            self.capture(module, model, example(count))
        self.speedups = {
            "train/gpu": float(self.device.type == "cuda"),
            "train/bfloat16": float(self.dtype is not None),
            "train/fused_convolutions": float(fused),
            "train/cuda_graph": float(graphed),
        }
        return module

    def fuses(self) -> bool:
        """Tell whether to train with fused convolutions; they are known to be faster in bfloat16 on GPUs.

        Raises:
            UserError: the settings ask for fused convolutions, and they do not run here.
        """
        kernel = self.settings.kernel
        known = self.device.type == "cuda" and self.dtype is torch.bfloat16
        if kernel == "plain" or (kernel == "auto" and (not known or self.settings.activation_checkpointing)):
            return False
        reason = refusal(self.device)
        if reason and kernel == "fused":
            raise UserError(f"kernel fused does not run here ({reason}); kernel plain does")
        if reason:
            _log.warning("training with kernel plain, as fused ones do not run here (%s)", reason)
        return reason is None

    def capture(self, module: nn.Module, model: MetaLoRAModel, example: Tensor) -> None:
        """Capture a module, so that in training it replays one CUDA graph of its forward and one of its backward.

        Raises:
            UserError: forward or backward waits for the GPU, or does something else that a graph cannot hold.
        """
        samples = [self.in_layout(example)]
        if model.extractor is not None:
            samples.append(torch.zeros(len(example), model.spec.condition_size, device=self.device))
        module.train()
        before = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
        # Gradients are accumulated on the capture's stream, for which autograd waits; torch warns of it since 2.10.
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        try:
            with self.autocast(cache=False):  # casts must be part of the graph
                torch.cuda.make_graphed_callables(module, tuple(samples))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"this network cannot be a CUDA graph ({reason}): train with --no-cuda-graph") from error
        model.load_adapter_state(before)  # batch norms that are trained have seen the samples
