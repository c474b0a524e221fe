# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""DTPnet: Distill-then-prune, An Efficient Compression Framework for Real-time Stereo
Matching Network on Edge Devices (arXiv 2405.11809). 2D convolutions only.

    setting     extractor              volume                hourglasses  parameters  (paper)
    3 (DTPnet)  F1 x3, F2 x8           channel to disparity  1              648,880   0.64 M
    2           F1 x3, F2 x8, F3, F4   iterative             1              991,746   0.95 M
    1           F1 x3, F2 x16, F3, F4  iterative             3            2,117,762   2.04 M

    left, right  (B, 3, H, W)      H, W multiples of 16
    F1           (B, 32, H/2, W/2)
    features     (B, 64, H/4, W/4) F2; settings 1 and 2 concatenate F3 and F4: 320 channels
    volume       (B, D/4, H/4, W/4)
    logits       (B, D, H/4, W/4)  1x1 convolution D/4 -> D, higher is better
    disparity    (B, H, W)         see `head`

Heads share their weights, so a network trained with one can be deployed with the other:
    'paper'    logits bilinearly to (B, D, H, W), softmax and soft argmax there. On a CPU
               this costs about five times the rest of the network.
    'quarter'  softmax and soft argmax at 1/4, then the disparity bilinearly to (B, H, W).

Where the paper is silent:
- Blocks. Its tables list MobileStereoNet's (Shamsafar et al., WACV 2022): F1 to F4 are that
  network's four layers of depthwise-separable residual blocks, the hourglass its 2D one. A
  stem of one stride-2 inverted residual stands before F1.
- Blocks in F2. Eight meet the stated totals, 0.64 M and 6.25 GMAC for both views of a
  640x480 pair; the row for F2 alone (0.09 M, 0.50 G) fits no count at 1/4 resolution.
- Layers of the channel-to-disparity module. 128 -> 128 -> 64 -> D/4 by 1x1 convolutions
  gives its 0.03 M.
- Iterative volume. MobileStereoNet's as published: 0.15 M on 320 channels; the paper
  prints 0.13 M and 7.16 G, near one of its 48 iterations (5.9 GMAC) and far from all (55.8).
- SPP. Four pooled contexts of 16 channels and a 1x1 convolution back to 64 give the stated
  0.01 M.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo_kd_training.networks.base import (
    NetworkError,
    StereoNetwork,
    StereoOutput,
    opaque,
)
from stereo_kd_training.networks.blocks import (
    ChoiceOfHead,
    ClampedAvgPool,
    MobileV1Residual,
    MobileV2Residual,
    check_multiple,
    check_pair,
    conv_bn_2d,
    distribution_confidence,
    hypotheses_like,
    initialize,
    residual_layer,
    soft_argmax,
    upsample_map,
)
from stereo_kd_training.networks.cost_volume import in_view, interlaced, shifted

VOLUMES = ('channel', 'iterative')
# Disparities of the iterative volume that are scored together.
_TOGETHER = 4
# Of a network that starts as a matcher: what is left of the weights that have no part in that, and
# what a standard deviation of the matching score is worth in logits.
_NOISE, _SHARPNESS = 0.1, 4.0
# setting -> (blocks in F2, F3 and F4 present, volume, hourglasses): Table II of the paper
_SETTINGS = {
    1: (16, True, 'iterative', 3),
    2: (8, True, 'iterative', 1),
    3: (8, False, 'channel', 1),
}


class Extractor(nn.Module):
    """(B, 3, H, W) -> (B, channels, H/4, W/4).

    Args:
        f2_blocks: residual blocks in F2.
        deep: add F3 and F4 and concatenate F2 to F4.
        spp: pool F2 over cells of 64, 32, 16 and 8 and merge these contexts into it.
    """

    def __init__(self, f2_blocks: int, deep: bool, spp: bool):
        super().__init__()
        self.stem = MobileV2Residual(3, 32, stride=2, expansion=3)
        self.f1 = residual_layer(MobileV1Residual, 32, 32, 3)
        self.f2 = residual_layer(MobileV1Residual, 32, 64, f2_blocks, stride=2)
        self.f3 = residual_layer(MobileV1Residual, 64, 128, 3) if deep else None
        self.f4 = residual_layer(MobileV1Residual, 128, 128, 3, dilation=2) if deep else None
        self.spp = PooledContext(64) if spp else None
        self.channels = 320 if deep else 64

    def forward(self, image: Tensor) -> Tensor:
        f2 = self.f2(self.f1(self.stem(image)))
        shallow = f2 if self.spp is None else self.spp(f2)
        if self.f3 is None or self.f4 is None:
            return shallow
        f3 = self.f3(f2)
        return torch.cat((shallow, f3, self.f4(f3)), 1)


class PooledContext(nn.Module):
    """Spatial pyramid pooling that keeps (B, C, H, W)."""

    def __init__(self, channels: int, cells: tuple[int, ...] = (64, 32, 16, 8)):
        super().__init__()
        narrow = channels // 4
        self.branches = nn.ModuleList(
            nn.Sequential(ClampedAvgPool(cell), conv_bn_2d(channels, narrow, 1), nn.ReLU())
            for cell in cells
        )
        self.merge = nn.Sequential(
            conv_bn_2d(channels + narrow * len(cells), channels, 1), nn.ReLU()
        )

    def forward(self, features: Tensor) -> Tensor:
        size = features.shape[-2:]
        contexts = [
            F.interpolate(branch(features), size, mode='bilinear', align_corners=False)
            for branch in self.branches
        ]
        return self.merge(torch.cat((features, *contexts), 1))


class ChannelToDisparity(nn.Module):
    """Equation 1: both views' features (B, C, h, w) -> volume (B, bins, h, w), by 1x1 layers.

    Nothing shifts one view against the other: the network learns disparity from channels.
    """

    def __init__(self, channels: int, bins: int):
        super().__init__()
        widths = (2 * channels, 128, 64, bins)
        layers = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [conv_bn_2d(narrow, wide, 1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layers(torch.cat((left, right), 1))


class IterativeVolume(nn.Module):
    """Equation 3: one number per disparity from interlaced channels (MobileStereoNet).

    (B, C, h, w) twice -> (B, bins, h, w); zero where x - d leaves the right image.
    """

    def __init__(self, channels: int, bins: int):
        super().__init__()
        self.bins = bins
        self.narrow = nn.Sequential(
            conv_bn_2d(channels, 256, 1),
            nn.ReLU(inplace=True),
            conv_bn_2d(256, 128, 1),
            nn.ReLU(inplace=True),
            conv_bn_2d(128, 64, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 32, 1),
        )
        # the 64 interlaced channels are the depth that the three strides 8, 4, 2 use up
        squeeze = []
        for narrow, wide, depth in ((1, 16, 8), (16, 32, 4), (32, 16, 2)):
            squeeze += [
                nn.Conv3d(narrow, wide, (depth, 3, 3), stride=(depth, 1, 1), padding=(0, 1, 1)),
                nn.BatchNorm3d(wide),
                nn.ReLU(),
            ]
        self.squeeze = nn.Sequential(*squeeze)
        self.score = nn.Sequential(conv_bn_2d(16, 1, 1), nn.ReLU())

    @torch.no_grad()
    def start_as_differences(self) -> None:
        """Begin as the sum of absolute differences of the two views' features.

        Half of the first filters are one view's channel less the other's, and this the other way
        round, so that their sum after the ReLU is the absolute difference; the next add these up
        over channels and over 3x3 cells, and are two again, of either sign. All other weights are
        what they were, by `_NOISE` smaller.
        """
        first, second, third = (each for each in self.squeeze if isinstance(each, nn.Conv3d))
        (score,) = (each for each in self.score.modules() if isinstance(each, nn.Conv2d))
        for convolution in (first, second, third, score):
            convolution.weight.mul_(_NOISE)
        planes = first.kernel_size[0]
        for filter_, (channel, sign) in enumerate(
            itertools.product(range(0, planes, 2), (1.0, -1.0))
        ):
            first.weight[filter_] = 0.0
            first.weight[filter_, 0, channel, 1, 1] = sign
            first.weight[filter_, 0, channel + 1, 1, 1] = -sign
        for filter_, sign in enumerate((-1.0, 1.0)):
            second.weight[filter_] = 0.0
            second.weight[filter_, :planes] = sign / second.weight[filter_, :planes].numel()
            third.weight[filter_] = 0.0
            for taken, of_sign in enumerate((-sign, sign)):
                third.weight[filter_, taken] = of_sign / third.weight[filter_, taken].numel()
        score.weight[0, :2, 0, 0] = score.weight.new_tensor((1.0, -1.0))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self._squeezed(self.narrow(left), self.narrow(right))

    # The same layers run for every disparity: pruning would follow them through all of them.
    @opaque()
    def _squeezed(self, left: Tensor, right: Tensor) -> Tensor:
        moved = list(shifted(right, self.bins))
        entries: list[Tensor | None] = [None] * self.bins
        # A few at once, from near to far: in training a norm sees near and far in every batch.
        runs = math.ceil(self.bins / _TOGETHER)
        for first in range(runs):
            some = range(first, self.bins, runs)
            pairs = torch.cat([interlaced(left, moved[d]) for d in some])
            scores = self.score(self._squeeze_depth(pairs))
            scores = scores.reshape(len(some), -1, *scores.shape[-2:])
            for place, d in enumerate(some):
                entries[d] = scores[place]
        volume = torch.stack(entries, 1)
        return volume * in_view(volume, self.bins)

    def _squeeze_depth(self, pairs: Tensor) -> Tensor:
        """(N, 64, h, w) -> (N, 16, h, w), by `squeeze` as convolutions of planes.

        A kernel as deep as its stride reads each plane once, so that its depth may as well be
        channels: half of the time of the three-dimensional convolution on a CPU.
        """
        layers = list(self.squeeze)
        depth = 64
        for convolution, norm in zip(layers[::3], layers[1::3]):
            # (out, in, depth, 3, 3): planes come one after another, the channels of each within.
            kernel = convolution.weight.transpose(1, 2).flatten(1, 2)
            size = pairs.shape[-2:]
            planes = pairs.reshape(-1, kernel.shape[1], *size)
            found = F.conv2d(planes, kernel, convolution.bias, padding=1)
            found = F.relu(norm(found.unsqueeze(2)).squeeze(2))
            depth //= convolution.stride[0]
            pairs = found.reshape(-1, depth * convolution.out_channels, *size)
        return pairs


class Hourglass2d(nn.Module):
    """MobileStereoNet's hourglass over (B, C, H, W), disparities as channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = MobileV2Residual(channels, 2 * channels, stride=2)
        self.conv2 = MobileV2Residual(2 * channels, 2 * channels)
        self.conv3 = MobileV2Residual(2 * channels, 4 * channels, stride=2)
        self.conv4 = MobileV2Residual(4 * channels, 4 * channels)
        self.conv5 = self._upsampling(4 * channels, 2 * channels)
        self.conv6 = self._upsampling(2 * channels, channels)
        self.redir1 = MobileV2Residual(channels, channels)
        self.redir2 = MobileV2Residual(2 * channels, 2 * channels)

    @staticmethod
    def _upsampling(in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.ConvTranspose2d(
                in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False
            ),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, volume: Tensor) -> Tensor:
        half = self.conv2(self.conv1(volume))
        quarter = self.conv4(self.conv3(half))
        half = F.relu(self.conv5(quarter) + self.redir2(half))
        return F.relu(self.conv6(half) + self.redir1(volume))


class DTPNet(ChoiceOfHead, StereoNetwork):
    """See the file header.

    Args:
        max_disparity_px: D, a multiple of 4.
        setting: 1, 2 or 3 of the paper's Table II. The next four override parts of it.
        f2_blocks: residual blocks in F2.
        volume: 'channel' or 'iterative'.
        hourglasses: how many in a row; 0 is the paper's ablation without one.
        spp: spatial pyramid pooling on F2.
        head: 'paper' or 'quarter'; may be changed on a built network.
        starts_matching: begin as a matcher of absolute differences, of features that are random
            still, in place of at chance; it has the same parameters. Of the iterative volume only.
    """

    stride = 16
    source = 'Distill-then-prune (DTPnet), arXiv 2405.11809'

    def __init__(
        self,
        max_disparity_px: int = 192,
        setting: int = 3,
        f2_blocks: int | None = None,
        volume: str | None = None,
        hourglasses: int | None = None,
        spp: bool = False,
        head: str = 'paper',
        starts_matching: bool = False,
    ):
        super().__init__()
        check_multiple('DTPNet', 'max_disparity_px', max_disparity_px, 4)
        if setting not in _SETTINGS:
            raise NetworkError(f'DTPNet: setting is 1, 2 or 3, got {setting!r}')
        blocks, deep, kind, count = _SETTINGS[setting]
        kind = volume or kind
        count = count if hourglasses is None else hourglasses
        if kind not in VOLUMES:
            raise NetworkError(f'DTPNet: volume is one of {VOLUMES}, got {kind!r}')
        if count < 0:
            raise NetworkError(f'DTPNet: hourglasses is 0 or more, got {count}')
        self.max_disparity_px = max_disparity_px
        self.head = head
        bins = max_disparity_px // 4
        self.extractor = Extractor(f2_blocks or blocks, deep, spp)
        build = IterativeVolume if kind == 'iterative' else ChannelToDisparity
        self.volume = build(self.extractor.channels, bins)
        self.hourglasses = nn.Sequential(*(Hourglass2d(bins) for _ in range(count)))
        self.to_disparities = nn.Conv2d(bins, max_disparity_px, 1)
        initialize(self)
        if starts_matching:
            self._start_matching()

    @torch.no_grad()
    def _start_matching(self) -> None:
        """The volume's scores, interpolated to single pixels, are the logits at first."""
        if not isinstance(self.volume, IterativeVolume):
            raise NetworkError(
                "DTPNet: starts_matching needs volume 'iterative'; the other shifts nothing, so "
                'that it cannot begin as a matcher'
            )
        self.volume.start_as_differences()
        for hourglass in self.hourglasses:
            # Only the way round it, as it is.
            nn.init.zeros_(hourglass.conv6[1].weight)
            nn.init.zeros_(hourglass.redir1.conv[-1].weight)
        pixels, bins = (
            torch.arange(n, dtype=torch.float32) for n in self.to_disparities.weight.shape[:2]
        )
        shares = (1.0 - (pixels[:, None] / 4.0 - bins).abs()).clamp_min(0.0)
        self.to_disparities.weight.copy_(_SHARPNESS * shares[..., None, None])

    def extract(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/4, W/4)."""
        return self.extractor(image)

    def match(self, left: Tensor, right: Tensor) -> StereoOutput:
        """Features of both views to a disparity at four times their resolution."""
        size = (4 * left.shape[-2], 4 * left.shape[-1])
        volume = self.volume(left, right)
        quarter = self.to_disparities(self.hourglasses(volume)).float()
        bins = hypotheses_like(quarter, self.max_disparity_px)
        coarse = soft_argmax(quarter, bins)
        confidence = distribution_confidence(quarter, bins, coarse)
        if self.head == 'quarter':
            logits, disparity = quarter, upsample_map(coarse, size)
        else:
            logits = F.interpolate(quarter, list(size), mode='bilinear', align_corners=False)
            disparity = soft_argmax(logits, bins)
        return StereoOutput(
            disparity=disparity,
            confidence=upsample_map(confidence, size),
            logits=(logits,),
            hypotheses=(bins,),
            features={'left': left, 'right': right, 'volume': volume, 'scores': quarter},
        )

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        check_pair(self, left, right)
        return self.match(self.extract(left), self.extract(right))
