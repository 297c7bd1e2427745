"""The small residual network for small images: He et al. 2015 (arXiv 1512.03385), section 4.2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """y = relu(x' + bn2(conv2(relu(bn1(conv1(x)))))), with x' the shortcut.

    The shortcut is the paper's option A: where the block halves the image and doubles the channels,
    x' is every second pixel of x, padded with zero channels. It has no parameters.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if channels_in == channels else 2
        self.new_channels = channels - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(x + h)


class ResNetCifar(nn.Module):
    """ResNet-(6n + 2) without its classifier: a 3x3 stem, three stages of n blocks, global average pool.

    Args:
        blocks: n, blocks per stage; 3 makes ResNet-20.
        width: Channels of the first stage; each further stage has twice as many.
    """

    def __init__(self, blocks: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = (width, 2 * width, 4 * width)
        before = (width, *widths[:-1])
        self.stages = nn.Sequential(
            *(
                nn.Sequential(_Block(first, width), *(_Block(width, width) for _ in range(blocks - 1)))
                for first, width in zip(before, widths, strict=True)
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Compute pooled features.

        Args:
            x: Images, (B, 3, H, W).

        Returns:
            Features, (B, 4 * width).
        """
        h = F.relu(self.bn1(self.conv1(x)))
        return torch.mean(self.stages(h), dim=(2, 3))
