"""Our ResNet50 and MobileNet U-Nets in PyTorch, for the benchmarks.

Modules are named as the Keras layers they stand for, so that `copy_weights` is a loop over
names; the numbers of parameters are equal, and with copied weights the outputs are too.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_EPSILON = 1e-3  # of Keras' BatchNormalization
_MOMENTUM = 0.01  # Keras' 0.99, as PyTorch counts it


class _Twin(nn.Module):
    """Encoder, nearest-neighbour U-Net decoder, one logit: what both twins share."""

    # Filters of the decoder's stages, deepest first.
    stages: tuple[tuple[int, int], ...]
    scale: torch.Tensor
    offset: torch.Tensor

    def _conv(
        self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, **settings
    ) -> None:
        settings = {"padding": kernel // 2, **settings}
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, **settings))

    def _norm(self, name: str, channels: int, epsilon: float = _EPSILON) -> None:
        self.add_module(name, nn.BatchNorm2d(channels, epsilon, _MOMENTUM))

    def _decoder(self, bottleneck: int, skips: tuple[int, ...]) -> None:
        """Makes the decoder's layers; `skips` are the channels joined at each stage."""
        channels = bottleneck
        for n, (filters, skip) in enumerate(zip(self.stages, skips, strict=True), start=1):
            channels += skip
            for i, count in enumerate(filters, start=1):
                self._conv(f"decoder_stage{n}_conv{i}", channels, count, 3)
                self._norm(f"decoder_stage{n}_bn{i}", count)
                channels = count
        self.dropout = nn.Dropout2d(0.2)
        self._conv("logits", channels, 1, 1)

    def _apply(self, function, *arguments, **named):
        super()._apply(function, *arguments, **named)
        # As in Keras, the photo is normalised in float32 whatever the rest computes in.
        self.scale, self.offset = self.scale.float(), self.offset.float()
        return self

    def _decode(self, x: torch.Tensor, skips: list[list[torch.Tensor]]) -> torch.Tensor:
        for n, parts in enumerate(skips, start=1):
            x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), *parts], 1)
            for i in (1, 2):
                x = self._layer(f"decoder_stage{n}_conv{i}", x)
                x = F.relu(self._layer(f"decoder_stage{n}_bn{i}", x))
        return self._layer("logits", self.dropout(x)).float()

    def _layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(name)(x)

    @property
    def _dtype(self) -> torch.dtype:
        return self.get_submodule("logits").weight.dtype

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        """`uint8[B, 3, H, W]` -> logits `float32[B, 1, H, W]`; H and W multiples of 32."""
        raise NotImplementedError


class ResNet50Unet(_Twin):
    """`resnet50`: He et al.'s encoder as Keras has it, the photo and a VGG16 block next to it."""

    stages = ((256, 256), (192, 192), (128, 128), (64, 64), (32, 32))
    _BLOCKS = ((2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, 3, 1, 1), persistent=False)
        offset = torch.tensor([-103.939, -116.779, -123.68]).view(1, 3, 1, 1)
        self.register_buffer("offset", offset, persistent=False)
        self._conv("conv1_conv", 3, 64, 7, 2)
        self._norm("conv1_bn", 64, 1.001e-5)
        channels = 64
        for stage, blocks, filters in self._BLOCKS:
            for block in range(1, blocks + 1):
                name = f"conv{stage}_block{block}"
                stride = 2 if stage > 2 and block == 1 else 1
                if block == 1:
                    self._conv(f"{name}_0_conv", channels, 4 * filters, 1, stride)
                    self._norm(f"{name}_0_bn", 4 * filters, 1.001e-5)
                self._conv(f"{name}_1_conv", channels, filters, 1, stride)
                self._conv(f"{name}_2_conv", filters, filters, 3)
                self._conv(f"{name}_3_conv", filters, 4 * filters, 1)
                for i, count in enumerate((filters, filters, 4 * filters), start=1):
                    self._norm(f"{name}_{i}_bn", count, 1.001e-5)
                channels = 4 * filters
        self._conv("block1_conv1", 3, 64, 3)
        self._conv("block1_conv2", 64, 64, 3)
        self._decoder(2048, (1024, 512, 256, 64, 3 + 64))

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        """See `_Twin.forward`."""
        x = (photo.float()[:, [2, 1, 0]] * self.scale + self.offset).to(self._dtype)
        vgg = F.relu(self._layer("block1_conv1", x))
        vgg = F.relu(self._layer("block1_conv2", vgg))
        skips = [[x, vgg]]
        x = F.relu(self._layer("conv1_bn", self._layer("conv1_conv", x)))
        skips.insert(0, [x])
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
        for stage, blocks, _ in self._BLOCKS:
            for block in range(1, blocks + 1):
                x = self._block(f"conv{stage}_block{block}", x, shortcut=block == 1)
            skips.insert(0, [x])
        return self._decode(x, skips[1:])

    def _block(self, name: str, x: torch.Tensor, shortcut: bool) -> torch.Tensor:
        before = x
        if shortcut:
            before = self._layer(f"{name}_0_bn", self._layer(f"{name}_0_conv", x))
        for i in (1, 2, 3):
            x = self._layer(f"{name}_{i}_bn", self._layer(f"{name}_{i}_conv", x))
            x = F.relu(x) if i < 3 else x
        return F.relu(before + x)


class MobileNetUnet(_Twin):
    """`mobilenet`: Howard et al.'s encoder as Keras has it, and the photo next to it."""

    stages = ((256, 256), (256, 256), (192, 128), (96, 64), (48, 32))
    # Filters of the pointwise convolutions; those at these numbers halve the size.
    _FILTERS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    _HALVE = (2, 4, 6, 12)
    _SKIPS = (1, 3, 5, 11, 13)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((1, 3, 1, 1), 1 / 127.5), persistent=False)
        self.register_buffer("offset", torch.full((1, 3, 1, 1), -1.0), persistent=False)
        self._conv("conv1", 3, 32, 3, 2, padding=0, bias=False)
        self._norm("conv1_bn", 32)
        channels = 32
        for i, filters in enumerate(self._FILTERS, start=1):
            self._conv(
                f"conv_dw_{i}",
                channels,
                channels,
                3,
                2 if i in self._HALVE else 1,
                padding=0 if i in self._HALVE else 1,
                groups=channels,
                bias=False,
            )
            self._norm(f"conv_dw_{i}_bn", channels)
            self._conv(f"conv_pw_{i}", channels, filters, 1, bias=False)
            self._norm(f"conv_pw_{i}_bn", filters)
            channels = filters
        self._decoder(1024, (512, 256, 128, 64, 3))

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        """See `_Twin.forward`."""
        x = (photo.float() * self.scale + self.offset).to(self._dtype)
        skips = [[x]]
        # Keras pads an even side at its end alone.
        x = self._layer("conv1", F.pad(x, (0, 1, 0, 1)))
        x = F.relu6(self._layer("conv1_bn", x))
        for i in range(1, len(self._FILTERS) + 1):
            x = F.pad(x, (0, 1, 0, 1)) if i in self._HALVE else x
            for part in (f"conv_dw_{i}", f"conv_pw_{i}"):
                x = F.relu6(self._layer(f"{part}_bn", self._layer(part, x)))
            if i in self._SKIPS:
                skips.insert(0, [x])
        return self._decode(x, skips[1:])


TWINS: dict[str, type[_Twin]] = {"resnet50": ResNet50Unet, "mobilenet": MobileNetUnet}


def copy_weights(layers: Mapping[str, Sequence[np.ndarray]], twin: nn.Module) -> None:
    """Copies the weights of one of our networks, by layer as `get_weights` gives them."""
    for name, values in layers.items():
        module = twin.get_submodule(name)
        arrays = [torch.tensor(value) for value in values]
        if isinstance(module, nn.BatchNorm2d):
            targets = [module.weight, module.bias, module.running_mean, module.running_var]
        else:
            # Keras: height, width, in, out; depthwise: height, width, channel, 1.
            order = (2, 3, 0, 1) if module.groups > 1 else (3, 2, 0, 1)
            arrays[0] = arrays[0].permute(order)
            targets = [module.weight] if module.bias is None else [module.weight, module.bias]
        with torch.no_grad():
            for target, array in zip(targets, arrays, strict=True):
                target.copy_(array)


def parameters(twin: nn.Module) -> int:
    """Trainable and moving parameters together, as Keras counts them."""
    moving = sum(
        buffer.numel() for name, buffer in twin.named_buffers() if name.endswith(("mean", "var"))
    )
    return sum(parameter.numel() for parameter in twin.parameters()) + moving
