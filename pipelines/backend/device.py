"""The device that this process computes on."""

import torch


def this_device(gpu: bool | None = None) -> torch.device:
    """Return the device of this process, a GPU or the CPU.

    Args:
        gpu: Whether this process was given a GPU; None: it takes one if there is one.
    """
    return torch.device("cuda" if (torch.cuda.is_available() if gpu is None else gpu) else "cpu")
