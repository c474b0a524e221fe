# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scenes without one of their ingredients: it is gone, and nobody loses it unasked."""

from __future__ import annotations

import functools
import json

import cv2
import numpy as np
import pytest

from stereo_kd_ros import procedural
from stereo_kd_ros.procedural import INGREDIENTS, ProceduralError, StereoSample, render_pair
from stereo_kd_ros.procedural_surfaces import View
from stereo_kd_training.datasets import rooms
from stereo_kd_training.datasets.faces import SpaceView
from stereo_kd_training.datasets.procedural import (
    PairPool,
    PoolError,
    PoolManifest,
    generate_pool,
    pool_pair,
)
from stereo_kd_training.datasets.rooms import KINDS, render_space

SCENES = {
    'layered': render_pair,
    **{kind: functools.partial(render_space, kind=kind) for kind in KINDS},
}


def drawn(scenes: str, without: tuple[str, ...] = (), count: int = 8) -> list[StereoSample]:
    """Some hard scenes without faults of cameras."""
    return [
        SCENES[scenes](
            (9, seed), 96, 192, 64.0, difficulty=0.8, cameras=False, without=without
        )
        for seed in range(count)
    ]  # fmt: skip


def faint(sample: StereoSample) -> float:
    """Share of pixels round which 9x9 px deviate by less than 4 levels."""
    grey = cv2.cvtColor(sample.left, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(grey, (9, 9))
    variance = cv2.blur(grey * grey, (9, 9)) - mean * mean
    return float((variance < 16).mean())


def narrow(sample: StereoSample) -> float:
    """Share of pixels that are nearer than what is 5 px to the left and to the right of them."""
    middle = sample.disparity[:, 5:-5]
    nearer = middle > np.maximum(sample.disparity[:, :-10], sample.disparity[:, 10:]) + 1
    return float(nearer.mean())


@pytest.mark.parametrize('scenes', ['layered', 'room', 'street'])
def test_without_weak_texture_less_than_two_thirds_of_the_faint_is_left(scenes):
    with_all, without = drawn(scenes), drawn(scenes, ('weak',))
    # What is left is one-coloured places of pictures, and the sky.
    assert np.mean([*map(faint, without)]) < 0.67 * np.mean([*map(faint, with_all)])


@pytest.mark.parametrize('scenes', ['layered', 'room', 'street'])
def test_without_thin_things_fewer_pixels_belong_to_any(scenes):
    with_all, without = drawn(scenes), drawn(scenes, ('thin',))
    assert np.mean([*map(narrow, without)]) < 0.8 * np.mean([*map(narrow, with_all)])


@pytest.mark.parametrize('scenes', ['layered', 'room', 'street'])
def test_without_mirrors_nothing_mirrors(scenes, monkeypatch):
    mirrors = []
    monkeypatch.setattr(procedural, 'View', heard(View, mirrors))
    monkeypatch.setattr(rooms, 'SpaceView', heard(SpaceView, mirrors))
    drawn(scenes)
    assert mirrors
    mirrors.clear()
    drawn(scenes, ('mirrors',))
    assert not mirrors


def heard(view: type, mirrors: list) -> type:
    """A view that notes what it paints and what of it mirrors."""

    class Heard(view):
        def paint(self, surface):
            note(surface)
            super().paint(surface)

        def backdrop(self, shell):
            for shape in shell:
                note(shape)
            super().backdrop(shell)

    def note(surface):
        face = getattr(surface, 'face', surface)
        if getattr(face, 'mirrored', None) is not None or getattr(face, 'sheen', ()):
            mirrors.append(face)

    return Heard


def test_without_streets_no_road_and_no_street_is_drawn(monkeypatch):
    drawn_roads = []
    monkeypatch.setattr(procedural._Scene, 'road', lambda scene: drawn_roads.append(scene))
    drawn('layered', ('streets',), count=24)
    assert not drawn_roads
    kinds = {rooms._drawn_kind(np.random.default_rng(seed), ('streets',)) for seed in range(40)}
    assert kinds == {'room', 'corridor'}
    kinds = {rooms._drawn_kind(np.random.default_rng(seed), ()) for seed in range(40)}
    assert kinds == set(KINDS)


@pytest.mark.parametrize('without', INGREDIENTS)
def test_a_pool_says_what_it_is_without_and_draws_it_so(without, tmp_path):
    pool = generate_pool(
        tmp_path, 2, 40, 72, seed=3, progress=False, scenes='mixed', without=[without]
    )
    assert PoolManifest.read(tmp_path).without == [without] == pool.without
    assert np.array_equal(PairPool(tmp_path)[1].left, pool_pair(pool, 1, None).left)
    with pytest.raises(PoolError, match='without'):
        generate_pool(tmp_path, 2, 40, 72, seed=3, progress=False, scenes='mixed')


def test_a_pool_of_everything_keeps_the_manifest_that_it_always_had(tmp_path):
    pool = generate_pool(tmp_path, 2, 40, 72, progress=False)
    assert 'without' not in json.loads(pool.to_json())
    assert PoolManifest.read(tmp_path) == pool


def test_what_cannot_be_left_out_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ProceduralError, match=r"without 'sky'.*streets, mirrors, weak, thin"):
        render_pair(0, 64, 64, without=('sky',))
    with pytest.raises(ProceduralError, match="without 'sky'"):
        render_space(0, 64, 64, without=('sky',))
    with pytest.raises(PoolError, match="without 'sky'"):
        generate_pool(tmp_path / 'p', 2, 40, 72, progress=False, without=['sky'])
    with pytest.raises(PoolError, match='nothing is left'):
        generate_pool(
            tmp_path / 'p', 2, 40, 72, progress=False, scenes='streets', without=['streets']
        )
    assert not (tmp_path / 'p').exists()
