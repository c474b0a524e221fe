# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parts that more than one stereo network is made of.

Convolution plus batch norm, the residual blocks of PSMNet (full convolutions) and of
MobileStereoNet (depthwise separable), the 3D hourglass of GwcNet, and the steps from a
matching score to a disparity: soft argmax, upsampling, confidence.

Children are laid out so that the state-dict keys of networks built from these parts are
those of the public PSMNet, GwcNet and ACVNet checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo_kd_training.networks.base import (
    NetworkError,
    StereoNetwork,
    StereoOutput,
    opaque,
)
from stereo_kd_training.networks.deployed import deployed, mean_of_bins


def check_pair(network: StereoNetwork, left: Tensor, right: Tensor) -> None:
    """Refuse a pair that the network cannot take, before it fails somewhere inside.

    Raises:
        NetworkError: not (B, 3, H, W), unequal shapes, or a side that is no multiple of
            the network's stride.
    """
    if torch.jit.is_tracing():
        return  # shapes are symbols there; the exporter has checked its example already
    name = type(network).__name__
    if left.dim() != 4 or left.shape[1] != 3:
        raise NetworkError(f'{name} takes images (B, 3, H, W), got {tuple(left.shape)}')
    if left.shape != right.shape:
        raise NetworkError(
            f'{name} got a left image {tuple(left.shape)} and a right image {tuple(right.shape)};'
            ' both must have one shape'
        )
    height, width = left.shape[-2:]
    stride = network.stride
    if height % stride or width % stride:
        raise NetworkError(
            f'{name} takes sides that are multiples of {stride}, got {height}x{width}; '
            f'pad to {-(-height // stride) * stride}x{-(-width // stride) * stride}'
        )


def check_multiple(network: str, option: str, value: int, multiple: int) -> None:
    """Refuse an option that is not a positive multiple of `multiple`.

    Raises:
        NetworkError: names the network, the option and its value.
    """
    if value <= 0 or value % multiple:
        raise NetworkError(
            f'{network}: {option} is a positive multiple of {multiple}, got {value}'
        )


def conv_bn_2d(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolution of unchanged extent at stride 1, then batch norm, no activation."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
    )


def conv_bn_3d(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """The same over (D, H, W)."""
    return nn.Sequential(
        nn.Conv3d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
        ),
        nn.BatchNorm3d(out_channels),
    )


def deconv_bn_3d(in_channels: int, out_channels: int) -> nn.Sequential:
    """Transposed 3x3x3 convolution that doubles (D, H, W), then batch norm."""
    return nn.Sequential(
        nn.ConvTranspose3d(
            in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False
        ),
        nn.BatchNorm3d(out_channels),
    )


def conv_pair_3d(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3x3 convolutions with batch norm, an activation between them and none after."""
    return nn.Sequential(
        conv_bn_3d(in_channels, out_channels, 3),
        nn.ReLU(inplace=True),
        conv_bn_3d(out_channels, out_channels, 3),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, without an activation after the sum (PSMNet)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv1 = nn.Sequential(
            conv_bn_2d(in_channels, channels, 3, stride, dilation), nn.ReLU(inplace=True)
        )
        self.conv2 = conv_bn_2d(channels, channels, 3, 1, dilation)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x)) + shortcut


class MobileV1Residual(nn.Module):
    """Two depthwise-separable convolutions and a shortcut (MobileStereoNet)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv1 = nn.Sequential(
            *_depthwise_separable(in_channels, channels, stride, dilation), nn.ReLU6()
        )
        self.conv2 = nn.Sequential(*_depthwise_separable(channels, channels, 1, dilation))
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x)) + shortcut


class MobileV2Residual(nn.Module):
    """Inverted residual: widen by `expansion`, depthwise 3x3, narrow (MobileStereoNet)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 2):
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *conv_bn_2d(in_channels, hidden, 1),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            *conv_bn_2d(hidden, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def residual_layer(
    block: type[nn.Module],
    in_channels: int,
    channels: int,
    blocks: int,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    """`blocks` residual blocks; the first changes channels and resolution."""
    first = block(in_channels, channels, stride, dilation)
    return nn.Sequential(
        first, *(block(channels, channels, 1, dilation) for _ in range(blocks - 1))
    )


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return conv_bn_2d(in_channels, channels, 1, stride)


def _depthwise_separable(
    in_channels: int, out_channels: int, stride: int, dilation: int
) -> list[nn.Module]:
    return [
        nn.Conv2d(
            in_channels,
            in_channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=in_channels,
            bias=False,
        ),
        nn.BatchNorm2d(in_channels),
        nn.ReLU6(),
        *conv_bn_2d(in_channels, out_channels, 1),
    ]


class StackedResidualExtractor(nn.Module):
    """The 2D trunk that PSMNet introduced and GwcNet, ACVNet and DSNet kept.

    (B, 3, H, W) -> (B, 320, H/4, W/4), the last three layers concatenated (64 + 128 + 128).

    Args:
        blocks: residual blocks in each of the four layers.
    """

    channels = 320

    def __init__(self, blocks: tuple[int, int, int, int] = (3, 16, 3, 3)):
        super().__init__()
        self.firstconv = nn.Sequential(
            conv_bn_2d(3, 32, 3, stride=2),
            nn.ReLU(inplace=True),
            conv_bn_2d(32, 32, 3),
            nn.ReLU(inplace=True),
            conv_bn_2d(32, 32, 3),
            nn.ReLU(inplace=True),
        )
        self.layer1 = residual_layer(BasicBlock, 32, 32, blocks[0])
        self.layer2 = residual_layer(BasicBlock, 32, 64, blocks[1], stride=2)
        self.layer3 = residual_layer(BasicBlock, 64, 128, blocks[2])
        self.layer4 = residual_layer(BasicBlock, 128, 128, blocks[3], dilation=2)

    def layers(self, image: Tensor) -> dict[str, Tensor]:
        """Maps by layer: `firstconv` and `layer1` at 1/2, `layer2` to `layer4` at 1/4."""
        maps = {}
        x = image
        for name in ('firstconv', 'layer1', 'layer2', 'layer3', 'layer4'):
            x = getattr(self, name)(x)
            maps[name] = x
        return maps

    def forward(self, image: Tensor) -> Tensor:
        return concatenated(self.layers(image))


def concatenated(layers: dict[str, Tensor]) -> Tensor:
    """The (B, 320, H/4, W/4) that matching uses, out of `StackedResidualExtractor.layers`."""
    return torch.cat((layers['layer2'], layers['layer3'], layers['layer4']), 1)


def narrowed_features(channels: int) -> nn.Sequential:
    """(B, 320, h, w) of the trunk -> (B, channels, h, w), for a concatenation volume."""
    return nn.Sequential(
        conv_bn_2d(StackedResidualExtractor.channels, 128, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(128, channels, 1, bias=False),
    )


def volume_entry(in_channels: int, channels: int = 32) -> tuple[nn.Sequential, nn.Sequential]:
    """What PSMNet and its children put before the hourglasses, called `dres0` and `dres1`.

    (B, in_channels, D, H, W) -> (B, channels, D, H, W), the same again; their sum goes on.
    """
    first = nn.Sequential(
        conv_bn_3d(in_channels, 32, 3),
        nn.ReLU(inplace=True),
        conv_bn_3d(32, channels, 3),
        nn.ReLU(inplace=True),
    )
    return first, conv_pair_3d(channels, channels)


def _activated(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.ReLU(inplace=True))


class Hourglass3d(nn.Module):
    """GwcNet's hourglass over a volume (B, C, D, H, W): two halvings, shortcuts by 1x1x1.

    Args:
        attention: module put at the coarsest level (ACVNet), or None.
    """

    def __init__(self, channels: int, attention: nn.Module | None = None):
        super().__init__()
        self.conv1 = _activated(conv_bn_3d(channels, 2 * channels, 3, stride=2))
        self.conv2 = _activated(conv_bn_3d(2 * channels, 2 * channels, 3))
        self.conv3 = _activated(conv_bn_3d(2 * channels, 4 * channels, 3, stride=2))
        self.conv4 = _activated(conv_bn_3d(4 * channels, 4 * channels, 3))
        if attention is not None:
            self.attention_block = attention
        self.conv5 = deconv_bn_3d(4 * channels, 2 * channels)
        self.conv6 = deconv_bn_3d(2 * channels, channels)
        self.redir1 = conv_bn_3d(channels, channels, 1)
        self.redir2 = conv_bn_3d(2 * channels, 2 * channels, 1)

    def forward(self, volume: Tensor) -> Tensor:
        half = self.conv2(self.conv1(volume))
        quarter = self.conv4(self.conv3(half))
        if hasattr(self, 'attention_block'):
            quarter = self.attention_block(quarter)
        half = F.relu(self.conv5(quarter) + self.redir2(half))
        return F.relu(self.conv6(half) + self.redir1(volume))


def score_head_3d(channels: int) -> nn.Sequential:
    """(B, C, D, H, W) -> (B, 1, D, H, W), the matching score of each hypothesis."""
    return nn.Sequential(
        conv_bn_3d(channels, channels, 3),
        nn.ReLU(inplace=True),
        nn.Conv3d(channels, 1, 3, padding=1, bias=False),
    )


def patch_filter(channels: int, dilation: int) -> nn.Conv3d:
    """Depthwise (1, 3, 3) filter: matches a patch of a correlation volume, not a pixel."""
    return nn.Conv3d(
        channels,
        channels,
        (1, 3, 3),
        padding=(0, dilation, dilation),
        dilation=(1, dilation, dilation),
        groups=channels,
        bias=False,
    )


def patch_pyramid() -> tuple[nn.Conv3d, nn.Conv3d, nn.Conv3d]:
    """ACVNet's patches of three sizes over the 8, 16 and 16 channels of 40 groups."""
    return patch_filter(8, 1), patch_filter(16, 2), patch_filter(16, 3)


def match_patches(volume: Tensor, pyramid: tuple[nn.Module, nn.Module, nn.Module]) -> Tensor:
    """(B, 40, D, H, W) through `patch_pyramid`, shape unchanged."""
    parts = volume.split([8, 16, 16], 1)
    return torch.cat([filter_(part) for filter_, part in zip(pyramid, parts)], 1)


def attention_weights(scores: Tensor) -> Tensor:
    """Softmax over the disparities of (B, 1, D, H, W), no weight below e^-40 of the largest.

    Sharp scores give weights that float32 holds only as subnormal numbers. Multiplied into a
    volume they reach every convolution behind it, and many CPUs compute with them by microcode,
    ten times slower. A weight of e^-40 adds to a sum in float32 no more than they do.
    """
    below_best = scores.float() - scores.detach().float().amax(2, keepdim=True)
    return torch.softmax(below_best.clamp(min=-40.0), 2)


def distillation_points(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    """The 2D maps DSNet compares with ACVNet: `early1`, `early2` at 1/2, of both views."""
    points = {'left': left['correlated'], 'right': right['correlated']}
    for name in ('early1', 'early2'):
        points[f'{name}_left'] = left[name]
        points[f'{name}_right'] = right[name]
    return points


class ClampedAvgPool(nn.Module):
    """Average pooling over `kernel`x`kernel` cells, or over the whole map where it is smaller.

    A traced graph keeps the nominal kernel, so export needs an example that is large enough.
    """

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            return F.avg_pool2d(x, self.kernel)
        return F.avg_pool2d(x, [min(self.kernel, side) for side in x.shape[-2:]])


def initialize(network: nn.Module) -> None:
    """He-initialise convolutions by fan-out (as PSMNet and its children do), norms to identity.

    Transposed convolutions and linear layers keep PyTorch's defaults.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            # the depth of a grouped filter is not part of the public rule
            fan_out = module.out_channels * module.weight[0, 0].numel()
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def full_precision(reference: Tensor) -> torch.autocast:
    """Autocast switched off: half precision resolves a disparity of 200 px to a pixel only."""
    # the meta device, on which complexity is counted, has no autocast of its own
    return torch.autocast('cpu' if reference.is_meta else reference.device.type, enabled=False)


def hypotheses_like(reference: Tensor, count: int, step_px: float = 1.0) -> Tensor:
    """(count,) disparities 0, step, 2 step, ... as float32 on the device of `reference`."""
    return torch.arange(count, device=reference.device, dtype=torch.float32) * step_px


@opaque()
def soft_argmax(logits: Tensor, hypotheses: Tensor) -> Tensor:
    """Expected disparity of softmax(logits), in float32: (B, D, H, W), (D,) -> (B, H, W)."""
    bins = hypotheses.view(1, -1, 1, 1)
    if deployed('regression'):
        return mean_of_bins(logits, bins)
    return (torch.softmax(logits.float(), 1) * bins).sum(1)


def scores_to_disparity(
    scores: Tensor, disparities: int, size: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor]:
    """PSMNet's regression: scores trilinearly to full resolution, softmax, expectation.

    Args:
        scores: (B, 1, d, h, w), higher is better.
        disparities: D; the full volume stands for 0 .. D - 1 px.
        size: (H, W).
        align_corners: False as in PyTorch since 0.4, True for weights of an older one.

    Returns:
        disparity (B, H, W) px and the full logits (B, D, H, W).
    """
    full = F.interpolate(
        scores.float(), [disparities, *size], mode='trilinear', align_corners=align_corners
    )
    # Not squeeze, which a traced graph does by copying the largest map of the network.
    logits = full.flatten(1, 2)
    return soft_argmax(logits, hypotheses_like(logits, disparities)), logits


def coarse_hypotheses(scores: Tensor, disparities: int, align_corners: bool) -> Tensor:
    """(d,) px that the entries of (B, 1, d, h, w) stand for once stretched to `disparities`."""
    count = scores.shape[2]
    if align_corners:
        return hypotheses_like(scores, count, (disparities - 1) / (count - 1))
    step = disparities / count
    return hypotheses_like(scores, count, step) + (step - 1) / 2


def scores_confidence(
    scores: Tensor, disparities: int, size: tuple[int, int], align_corners: bool
) -> Tensor:
    """Confidence (B, H, W) out of (B, 1, d, h, w), judged at the coarse resolution."""
    hypotheses = coarse_hypotheses(scores, disparities, align_corners)
    logits = scores.squeeze(1)
    disparity = soft_argmax(logits, hypotheses)
    return upsample_map(distribution_confidence(logits, hypotheses, disparity), size)


def upsample_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear (B, h, w) -> (B, H, W); values are not rescaled."""
    full = F.interpolate(values.unsqueeze(1), list(size), mode='bilinear', align_corners=False)
    return full.squeeze(1)


@opaque()
def distribution_confidence(
    logits: Tensor, hypotheses: Tensor, disparity: Tensor, radius_px: float = 2.0
) -> Tensor:
    """Probability mass within `radius_px` (or one bin, if wider) of the answer.

    Args:
        logits: (B, D, h, w), higher is better.
        hypotheses: (D,) px, ascending.
        disparity: (B, h, w) px at the resolution of the logits.

    Returns:
        (B, h, w) in [0, 1].
    """
    bin_px = (hypotheses[-1] - hypotheses[0]) / (hypotheses.numel() - 1)
    reach = torch.clamp(bin_px, min=radius_px)
    near = (hypotheses.view(1, -1, 1, 1) - disparity.unsqueeze(1)).abs() <= reach
    if deployed('regression'):
        return mean_of_bins(logits, near.float())
    return (torch.softmax(logits.float(), 1) * near).sum(1)


HEADS = ('paper', 'quarter')


class ChoiceOfHead:
    """Where a network regresses: `head`, one of `HEADS`, may be changed on a built network."""

    @property
    def head(self) -> str:
        return self._head

    @head.setter
    def head(self, value: str) -> None:
        if value not in HEADS:
            raise NetworkError(f'{type(self).__name__}: head is one of {HEADS}, got {value!r}')
        self._head = value


def quarter_output(
    heads: tuple[Tensor, ...],
    disparities: int,
    size: tuple[int, int],
    features: dict[str, Tensor],
) -> StereoOutput:
    """`volume_output` without its full volume: regression on the grid of the scores.

    The disparity is then stretched bilinearly, for 64 times fewer exponentials with scores at 1/4.
    The hypotheses are those of stretching without `align_corners`, so a network trained
    by either may be deployed by the other.
    """
    hypotheses = coarse_hypotheses(heads[-1], disparities, False)
    logits = tuple(head.squeeze(1).float() for head in heads)
    coarse = tuple(soft_argmax(scores, hypotheses) for scores in logits)
    stages = tuple(upsample_map(disparity, size) for disparity in coarse)
    confidence = distribution_confidence(logits[-1], hypotheses, coarse[-1])
    return StereoOutput(
        disparity=stages[-1],
        confidence=upsample_map(confidence, size),
        stages=stages,
        logits=logits,
        hypotheses=(hypotheses,) * len(logits),
        features=features,
    )


def volume_output(
    heads: tuple[Tensor, ...],
    disparities: int,
    size: tuple[int, int],
    align_corners: bool,
    features: dict[str, Tensor],
) -> StereoOutput:
    """Regress every score volume of `heads` (B, 1, d, h, w), the last being the answer."""
    regressed = [scores_to_disparity(head, disparities, size, align_corners) for head in heads]
    stages = tuple(disparity for disparity, _ in regressed)
    logits = tuple(full for _, full in regressed)
    bins = hypotheses_like(logits[-1], disparities)
    return StereoOutput(
        disparity=stages[-1],
        confidence=scores_confidence(heads[-1], disparities, size, align_corners),
        stages=stages,
        logits=logits,
        hypotheses=(bins,) * len(logits),
        features=features,
    )
