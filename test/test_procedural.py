# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural pairs: truth from first principles, occlusion, range, reproducibility."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import settings
from scene_promises import any_scene, require_promises, require_same_bytes_of_same_seed

from stereo_kd_ros import procedural
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.procedural import (
    Painter,
    ProceduralError,
    StereoSample,
    render_pair,
    render_sequence,
)
from stereo_kd_ros.procedural_room import Eye, Hall, Panel, Pose
from stereo_kd_ros.procedural_surfaces import Bump, Surface, View, occluded_pixels
from stereo_kd_ros.procedural_textures import (
    ATLAS_SIZE,
    TEXTURE_KINDS,
    photograph,
    synthetic_texture,
)

HEIGHT, WIDTH = 48, 160
LEVEL = (0.0, 1.0, 0.0)


def textured(
    plane: tuple[float, float, float], bump: Bump | None = None, shift: float = 0.0
) -> Surface:
    """A surface over the whole view, its texture fixed to left pixels, ``shift`` px aside."""
    texture = cv2.GaussianBlur(synthetic_texture(TEXTURE_KINDS * 3), (0, 0), 2)
    to_texture = np.array([[1.0, 0.0, 20.0 + shift], [0.0, 1.0, 20.0], [0.0, 0.0, 1.0]])
    return Surface(plane, (texture,), to_texture, bump=bump)


def card(disparity: float, columns: slice, rows: slice) -> Surface:
    """An opaque rectangle at a constant disparity."""
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[rows, columns] = 255
    texture = synthetic_texture(7)
    return Surface((0.0, 0.0, disparity), (texture,), np.eye(3), alpha)


def draw(
    *surfaces: Surface, vertical: tuple[float, float, float] = LEVEL
) -> tuple[View, View, np.ndarray]:
    """Both views and the occlusion mask of a hand-made scene."""
    left, right = View(HEIGHT, WIDTH, None), View(HEIGHT, WIDTH, vertical)
    for surface in surfaces:
        left.paint(surface)
        right.paint(surface)
    mask = occluded_pixels(left.disparity, right.disparity, np.asarray(vertical))
    return left, right, mask


def measured_bias_px(sample: StereoSample) -> float:
    """Least-squares horizontal offset left over after warping the right picture by the truth."""
    height, width = sample.disparity.shape
    x = np.arange(width, dtype=np.float32)[None] - sample.disparity
    y = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    left = sample.left.astype(np.float32).mean(axis=2)
    right = sample.right.astype(np.float32).mean(axis=2)
    warped = cv2.remap(right, x, y, cv2.INTER_CUBIC)
    gradient = (np.roll(warped, -1, axis=1) - np.roll(warped, 1, axis=1)) / 2
    smooth = np.abs(cv2.Laplacian(sample.disparity, cv2.CV_32F)) < 0.3
    usable = (smooth & ~sample.occluded).astype(np.uint8)
    usable = cv2.erode(usable, np.ones((5, 5), np.uint8)).astype(bool)
    residual = warped - left
    usable &= np.abs(residual) < 20
    return float((gradient * residual)[usable].sum() / (gradient**2)[usable].sum())


def test_whole_pixel_disparity_shifts_the_picture():
    left, right, _ = draw(textured((0.0, 0.0, 7.0)))
    assert np.array_equal(right.image[:, : WIDTH - 7], left.image[:, 7:])
    assert np.all(left.disparity == 7)
    assert np.all(right.disparity == 7)


def test_subpixel_disparity_equals_a_shifted_texture():
    _, right, _ = draw(textured((0.0, 0.0, 7.25)))
    expected, _, _ = draw(textured((0.0, 0.0, 0.0), shift=7.25))
    assert np.abs(right.image.astype(int) - expected.image).max() <= 1


@pytest.mark.parametrize('plane', [(0.1, 0.0, 5.0), (-0.15, 0.05, 30.0), (0.0, 0.2, 1.0)])
def test_slanted_plane_has_the_closed_form_in_the_right_view(plane):
    a, b, c = plane
    left, right, _ = draw(textured(plane))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    assert np.allclose(left.disparity, a * x + b * y + c, atol=1e-4)
    assert np.allclose(right.disparity, (a * x + b * y + c) / (1 - a), atol=1e-4)


@pytest.mark.parametrize(
    'bump',
    [
        Bump('wave', 3.0, (80.0, 24.0), (0.08, 0.03), 0.4),
        Bump('ridge', 4.0, (80.0, 24.0), (0.05, 0.02)),
        Bump('quadric', 5.0, (80.0, 24.0), (1 / 60, 1 / 30)),
    ],
)
def test_bumped_surface_solves_the_right_view_exactly(bump):
    a, b, c = plane = (0.03, -0.02, 20.0)
    _, right, _ = draw(textured(plane, bump))
    y, x_right = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    x_left = x_right + right.disparity
    value, slope = bump.value_and_slope(x_left, y)
    assert np.abs(a * x_left + b * y + c + value - right.disparity).max() < 2e-3
    step = 0.01
    ahead, _ = bump.value_and_slope(x_left + np.float32(step), y)
    settled = np.abs((ahead - value) / step - slope) < 0.05
    assert settled.mean() > 0.97


def test_card_before_a_wall_hides_what_geometry_says():
    wall, front = 4, 14
    left, right, occluded = draw(
        textured((0.0, 0.0, float(wall))), card(float(front), slice(60, 100), slice(10, 40))
    )
    # The card covers right columns 60-14 .. 100-14; wall pixel x lies at right column x-4.
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:, :wall] = True
    expected[10:40, 60 - (front - wall) : 60] = True
    assert np.array_equal(occluded, expected)
    assert np.all(left.disparity[10:40, 60:100] == front)
    assert np.all(right.disparity[10:40, 46:86] == front)
    assert np.all(right.disparity[10:40, 86:] == wall)


def test_what_a_sheet_mirrors_moves_less_than_the_sheet():
    """Black paint that mirrors a wall three times as far away: the picture moves by a third of
    the paint's disparity, the truth is the paint's, and half of the light is lost."""
    image = textured((0.0, 0.0, 4.0))
    black = (np.zeros_like(image.levels[0]),)
    paint = replace(image, plane=(0.0, 0.0, 12.0), levels=black)
    left, right, _ = draw(replace(paint, mirrored=image, mirrored_share=0.5))
    assert (left.disparity == 12).all() and (right.disparity == 12).all()
    np.testing.assert_array_equal(left.image[:, 4:], right.image[:, :-4])
    alone, _, _ = draw(image)
    assert alone.image.std() > 5
    np.testing.assert_allclose(left.image, alone.image / 2, atol=0.6)


def test_holes_of_a_mesh_show_what_is_behind_and_count_as_the_mesh():
    wall = textured((0.0, 0.0, 3.0))
    sheet = card(9.0, slice(60, 120), slice(10, 40))
    wires = sheet.alpha.copy()
    wires[:, np.arange(WIDTH) % 8 > 0] = 0
    left, right, _ = draw(wall, replace(sheet, alpha=wires, filled=sheet.alpha))
    assert (left.disparity[10:40, 60:120] == 9).all()
    assert (right.disparity[10:40, 51:111] == 9).all()
    assert (left.disparity == 9).sum() == (right.disparity == 9).sum() == 30 * 60
    alone_left, alone_right, _ = draw(wall)
    for view, alone, hole in ((left, alone_left, 66), (right, alone_right, 57)):
        np.testing.assert_array_equal(
            view.image[10:40, hole : hole + 3], alone.image[10:40, hole : hole + 3]
        )
    assert (left.image[10:40, 64] != alone_left.image[10:40, 64]).mean() > 0.5


@pytest.mark.parametrize('difficulty', [0.0, 1.0])
def test_some_scenes_mirror_and_some_hold_meshes(difficulty):
    painter = Painter(np.random.default_rng(0), None, difficulty)
    scene = procedural._Scene(np.random.default_rng(1), painter, 192, 384, 128.0, difficulty)
    for _ in range(20):
        scene.road()
    mirrored = [s for s in scene.surfaces if s.mirrored is not None]
    assert 0.02 < len(mirrored) / len(scene.surfaces) < 0.4
    assert any(s.filled is not None for s in scene.surfaces)
    for surface in mirrored:
        near, far = np.asarray(surface.plane), np.asarray(surface.mirrored.plane)
        corners = np.array([[0, 0, 1], [383, 0, 1], [0, 191, 1], [383, 191, 1]])
        ahead = corners @ near > 0
        assert (corners @ far <= corners @ near)[ahead].all(), 'an image before its mirror'


def test_nearer_surface_wins_whatever_the_order():
    wall = textured((0.0, 0.0, 4.0))
    front = card(14.0, slice(60, 100), slice(10, 40))
    for views in zip(draw(wall, front)[:2], draw(front, wall)[:2], strict=True):
        assert np.array_equal(views[0].disparity, views[1].disparity)


def test_crossing_planes_meet_where_their_disparities_are_equal():
    left, _, _ = draw(textured((0.0, 0.0, 10.0)), textured((0.0, 0.5, 0.0)))
    assert np.all(left.disparity[:20] == 10)
    assert np.allclose(left.disparity[21:, 0], 0.5 * np.arange(21, HEIGHT))


def test_vertical_error_moves_rows_of_the_right_view_only():
    straight, right, _ = draw(textured((0.0, 0.0, 6.0)))
    left, shifted, _ = draw(textured((0.0, 0.0, 6.0)), vertical=(0.0, 1.0, 2.0))
    assert np.array_equal(left.image, straight.image)
    assert np.array_equal(shifted.image[: HEIGHT - 2], right.image[2:])
    assert np.all(shifted.disparity == 6)


def test_same_seed_same_bytes_and_other_seed_other_scene():
    require_same_bytes_of_same_seed(render_pair)


def test_seed_order_does_not_matter():
    alone = render_pair(11, 64, 128)
    render_pair(12, 64, 128)
    assert np.array_equal(render_pair(11, 64, 128).left, alone.left)


@settings(max_examples=25)
@any_scene
def test_every_scene_keeps_its_promises(seed, height, width, limit, difficulty):
    sample = render_pair(seed, height, width, limit, difficulty=difficulty)
    require_promises(sample, height, width, limit)


@pytest.mark.parametrize('seed', range(100, 112))
def test_both_truths_agree_on_what_both_eyes_see(seed):
    # Perfectly rectified: an error of some tenths of a row would show on slanted ground.
    sample = render_pair(seed, 192, 384, cameras=False)
    y, x = np.mgrid[:192, :384].astype(np.float32)
    seen = cv2.remap(sample.disparity_right, x - sample.disparity, y, cv2.INTER_LINEAR)
    gap = np.abs(seen - sample.disparity)[~sample.occluded]
    assert np.median(gap) < 0.002
    assert (gap > 0.5).mean() < 0.05


def test_truth_is_unbiased_to_a_few_hundredths_of_a_pixel():
    biases = [measured_bias_px(render_pair(seed, difficulty=0.0)) for seed in range(12)]
    assert abs(np.median(biases)) < 0.02
    assert np.mean(np.abs(biases)) < 0.05


def test_a_seventh_at_most_of_a_typical_scene_is_occluded():
    shares = [render_pair(seed).occluded.mean() for seed in range(24)]
    assert 0.01 < np.mean(shares) < 0.15


def test_a_third_of_the_cameras_leave_noise_whose_neighbours_are_alike():
    grey = np.full((120, 160, 3), 128, np.uint8)

    def alike(seed: int) -> bool:
        left, right = photograph(np.random.default_rng(seed), grey, grey, 0.5)
        left, right = (
            eye[..., 1] - cv2.blur(eye[..., 1].astype(np.float32), (41, 41))
            for eye in (left, right)
        )
        if min(left.std(), right.std()) < 0.2:
            return False
        # Steps of a vignette are the same in both eyes.
        own = abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.2
        return own and (left[:, 2:] * left[:, :-2]).mean() / left.var() > 0.2

    assert 0.15 < np.mean([alike(seed) for seed in range(60)]) < 0.5


def test_given_textures_are_painted_with():
    red = np.zeros((300, 300, 3), np.uint8)
    red[..., 0] = np.random.default_rng(0).integers(60, 255, (300, 300))
    painted = [render_pair(seed, 96, 192, textures=[red]) for seed in range(4)]
    plain = [render_pair(seed, 96, 192) for seed in range(4)]
    assert any(not np.array_equal(a.left, b.left) for a, b in zip(painted, plain, strict=True))


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ({'height': 16}, 'too small'),
        ({'width': 31}, 'too small'),
        ({'max_disparity_px': 2.0}, 'max_disparity_px'),
        ({'max_disparity_px': math.nan}, 'max_disparity_px'),
        ({'difficulty': 1.5}, 'difficulty'),
    ],
)
def test_impossible_scenes_are_refused(arguments, word):
    with pytest.raises(ProceduralError, match=word):
        render_pair(0, **arguments)


@pytest.mark.parametrize('kind', range(TEXTURE_KINDS))
def test_every_kind_of_texture_has_something_to_match(kind):
    texture = synthetic_texture(kind)
    assert texture.dtype == np.uint8
    assert texture.shape[2] == 3
    assert texture.std() > 0.5
    assert not texture.flags.writeable
    assert ATLAS_SIZE % TEXTURE_KINDS == 0


def test_panel_square_to_the_eye_is_at_its_depth():
    pose = Pose(np.zeros(3), np.eye(3))
    matrix = np.array([[100.0, 0, 40], [0, 100, 30], [0, 0, 1]])
    texture = synthetic_texture(0)
    panel = Panel(
        np.array([-0.5, -0.5, 5.0]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), (texture,)
    )
    eye = Eye(matrix, 81, 61, pose)
    eye.see([panel])
    # Half a metre at five metres and 100 px of focal length is ten pixels.
    expected = np.zeros((61, 81), bool)
    expected[20:41, 30:51] = True
    assert np.array_equal(eye.nearest == 0, expected)
    assert np.allclose(eye.inverse_depth[expected], 0.2)


def test_panel_behind_the_eye_is_not_seen():
    eye = Eye(
        np.array([[100.0, 0, 40], [0, 100, 30], [0, 0, 1]]), 81, 61, Pose(np.zeros(3), np.eye(3))
    )
    behind = Panel(
        np.array([-5.0, -5.0, -2.0]),
        np.array([10.0, 0, 0]),
        np.array([0, 10.0, 0]),
        (synthetic_texture(0),),
    )
    eye.see([behind])
    assert (eye.nearest == -1).all()


@pytest.fixture(scope='module')
def camera() -> StereoCamera:
    return StereoCamera.from_intrinsics(160.0, 0.2, 224, 168)


@pytest.fixture(scope='module')
def walk(camera) -> list[StereoSample]:
    return list(render_sequence(3, 4, camera))


def test_sequence_is_reproducible(camera, walk):
    again = next(iter(render_sequence(3, 1, camera)))
    assert again.left.tobytes() == walk[0].left.tobytes()
    assert again.disparity.tobytes() == walk[0].disparity.tobytes()


def test_sequence_truth_is_seen_by_both_eyes(walk):
    for sample in walk:
        height, width = sample.disparity.shape
        y, x = np.mgrid[:height, :width].astype(np.float32)
        seen = cv2.remap(sample.disparity_right, x - sample.disparity, y, cv2.INTER_LINEAR)
        gap = np.abs(seen - sample.disparity)[~sample.occluded]
        assert np.median(gap) < 0.02
        assert (gap > 0.5).mean() < 0.04
        assert abs(measured_bias_px(sample)) < 0.05
        assert sample.disparity.min() > 0.5
        assert sample.disparity.max() < 80


def test_sequence_moves_and_stays_one_scene(camera, walk):
    """Depth carried from one frame to the next by the poses lands on that frame's depth."""
    hall = Hall(3, camera.fx * camera.baseline_m / 56.0)
    for number, (before, after) in enumerate(itertools.pairwise(walk)):
        assert not np.array_equal(before.left, after.left)
        first, second = hall.pose(number), hall.pose(number + 1)
        y, x = np.mgrid[: camera.height, : camera.width]
        depth = camera.fx * camera.baseline_m / before.disparity
        rays = np.stack([(x - camera.cx_left) / camera.fx, (y - camera.cy) / camera.fy, x * 0 + 1])
        world = first.rotation.T @ (rays * depth).reshape(3, -1) + first.centre[:, None]
        moved = second.rotation @ (world - second.centre[:, None])
        moved = moved.reshape(3, camera.height, camera.width)
        u = (camera.fx * moved[0] / moved[2] + camera.cx_left).astype(np.float32)
        v = (camera.fy * moved[1] / moved[2] + camera.cy).astype(np.float32)
        expected = camera.fx * camera.baseline_m / moved[2]
        found = cv2.remap(after.disparity, u, v, cv2.INTER_LINEAR)
        inside = (u > 1) & (u < camera.width - 2) & (v > 1) & (v < camera.height - 2)
        assert (np.abs(found - expected)[inside] < 0.1).mean() > 0.9


def test_sequence_honours_a_shifted_right_centre():
    rig = StereoCamera(96, 72, 80.0, 80.0, 48.0, 42.0, 36.0, 0.2)
    straight = StereoCamera(96, 72, 80.0, 80.0, 48.0, 48.0, 36.0, 0.2)
    shifted = next(iter(render_sequence(1, 1, rig)))
    plain = next(iter(render_sequence(1, 1, straight)))
    assert np.allclose(shifted.disparity, plain.disparity + 6, atol=1e-3)
