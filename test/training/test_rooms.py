# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Faces in space and the scenes made of them: geometry, both eyes, occlusion, reproducibility."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_promises import any_scene, require_promises, require_same_bytes_of_same_seed

from stereo_kd_ros.procedural import Painter, ProceduralError, StereoSample, mirrored_pyramid
from stereo_kd_ros.procedural_surfaces import occluded_pixels
from stereo_kd_ros.procedural_textures import synthetic_texture
from stereo_kd_training.datasets import streets
from stereo_kd_training.datasets.faces import (
    Face,
    Rig,
    Sheen,
    SpaceView,
    cross,
    nearest_in_view,
    outline,
)
from stereo_kd_training.datasets.procedural import PairPool, PoolError, generate_pool, pool_pair
from stereo_kd_training.datasets.rooms import KINDS, render_space
from stereo_kd_training.datasets.space import Space

HEIGHT, WIDTH, FOCAL, BASELINE = 96, 160, 150.0, 0.2
RIGHT, DOWN, AHEAD = np.eye(3)
LEVELS = mirrored_pyramid(cv2.GaussianBlur(np.array(synthetic_texture(20))[:128, :128], (0, 0), 2))


def rig(vertical=(0.0, 1.0, 0.0), rotation=None) -> Rig:
    matrix = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1.0]])
    turned = np.eye(3) if rotation is None else rotation
    return Rig(matrix, turned, np.zeros(3), BASELINE, HEIGHT, WIDTH, vertical)


def panel(x: float, y: float, z: float, wide: float, tall: float, **options) -> Face:
    """A face square to the eye whose middle is at (x, y, z)."""
    corner = np.array([x - wide / 2, y - tall / 2, z])
    return Face(corner, wide * RIGHT, tall * DOWN, LEVELS, (200.0, 200.0), **options)


def wall(z: float = 6.0) -> Face:
    return panel(0, 0, z, 2.0, 2.0, unbounded=True)


def draw(faces: list[Face], eyes: Rig) -> tuple[SpaceView, SpaceView, np.ndarray]:
    """Both views of unbounded and bounded faces, given farthest first, and the occlusions."""
    shapes = [outline(face, eyes) for face in faces]
    views = SpaceView(eyes, right=False), SpaceView(eyes, right=True)
    for view in views:
        view.backdrop([shape for shape in shapes if shape.face.unbounded])
        for shape in shapes:
            if not shape.face.unbounded:
                view.paint(shape)
    mask = occluded_pixels(views[0].disparity, views[1].disparity, np.asarray(eyes.vertical))
    return *views, mask


def rays() -> np.ndarray:
    """(H, W, 3) directions with z = 1 through the left pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.dstack(
        [(x - (WIDTH - 1) / 2) / FOCAL, (y - (HEIGHT - 1) / 2) / FOCAL, np.ones(x.shape)]
    )


def ray_cast(faces: list[Face]) -> np.ndarray:
    """(H, W) disparity by intersecting every pixel's ray with every face: the slow truth."""
    nearest = np.full((HEIGHT, WIDTH), np.inf)
    for face in faces:
        normal = np.cross(face.edge_u, face.edge_v)
        depth = (normal @ face.corner) / (rays() @ normal)
        point = rays() * depth[..., None] - face.corner
        basis = np.linalg.pinv(np.stack([face.edge_u, face.edge_v], axis=1))
        unit = point @ basis.T
        inside = np.all((unit >= 0) & (unit <= 1), axis=2) | face.unbounded
        nearest = np.where((depth > 0) & inside & (depth < nearest), depth, nearest)
    return FOCAL * BASELINE / nearest


def test_panel_square_to_the_eye_covers_the_pixels_that_geometry_says():
    # Two metres off, 0.4 m are 30 px, and 150 px * 0.2 m / 2 m are 15 px.
    left, right, occluded = draw([wall(), panel(0.0, 0.0, 2.0, 0.4, 0.4)], rig())
    expected = np.zeros((HEIGHT, WIDTH), bool)
    # The centre lies between two pixels, so 15 of them lie on either side of it.
    expected[33:63, 65:95] = True
    assert np.array_equal(left.disparity == 15, expected)
    assert np.array_equal(right.disparity == 15, np.roll(expected, -15, axis=1))
    assert np.allclose(left.disparity[~expected], 5)
    hidden = np.zeros_like(expected)
    hidden[33:63, 55:65] = True
    hidden[:, :5] = True
    assert np.array_equal(occluded, hidden)


def test_every_pixel_agrees_with_a_ray_cast_of_a_turned_room():
    angle = 0.4
    along = np.array([math.cos(angle), 0.0, math.sin(angle)])
    deep = np.array([-math.sin(angle), 0.0, math.cos(angle)])
    faces = [
        Face(np.array([-3.0, -1.0, 5.0]), 6 * along, 2 * DOWN, LEVELS, unbounded=True),
        Face(np.array([-3.0, 0.7, 0.5]), 6 * RIGHT, 6 * AHEAD, LEVELS, unbounded=True),
        Face(np.array([-0.6, -0.4, 3.0]), along, np.array([0.1, 0.8, 0.2]), LEVELS),
        Face(np.array([0.2, -0.3, 1.4]), 0.5 * deep, 0.6 * DOWN, LEVELS),
    ]
    left, _, _ = draw(faces, rig())
    expected = ray_cast(faces)
    gap = np.abs(left.disparity - expected)
    # Pixels cut by a silhouette count to either side of it.
    assert (gap > 1e-3).mean() < 0.01
    assert np.median(gap) < 1e-5


@settings(max_examples=30)
@given(
    tilt=st.tuples(st.floats(-1.2, 1.2), st.floats(-1.2, 1.2)),
    depth=st.floats(1.0, 30.0),
    vertical=st.tuples(st.floats(-0.002, 0.002), st.floats(0.998, 1.002), st.floats(-1, 1)),
)
def test_right_view_of_any_plane_is_where_the_left_one_says(tilt, depth, vertical):
    """A plane's right disparity at the match of a left pixel is the left disparity itself."""
    face = Face(
        np.array([0.0, 0.0, depth]),
        np.array([1.0, 0.0, tilt[0]]),
        np.array([0.0, 1.0, tilt[1]]),
        LEVELS,
        unbounded=True,
    )
    eyes = rig(vertical)
    shape = outline(face, eyes)
    plane = shape.to_unit[2] * eyes.focal_baseline
    if plane[0] > 0.9:
        return
    view = SpaceView(eyes, right=True)
    to_left = view.to_left(plane)
    x, y = np.meshgrid(np.linspace(0, WIDTH - 1, 7), np.linspace(0, HEIGHT - 1, 5))
    left = np.stack([x.ravel(), y.ravel()], axis=1)
    disparity = left @ plane[:2] + plane[2]
    right = eyes.to_right(left, disparity)
    back = np.column_stack([right, np.ones(len(right))]) @ to_left.T
    assert np.allclose(back[:, :2], left, atol=1e-6)
    assert np.allclose(back[:, 0] - right[:, 0], disparity, atol=1e-6)


def test_depth_of_a_plane_is_focal_length_times_baseline_over_disparity():
    face = Face(np.array([-1.0, 0.5, 1.0]), RIGHT, AHEAD, LEVELS, unbounded=True)
    left, _, _ = draw([wall(50.0), face], rig())
    # Row y of the floor half a metre down is at the depth 0.5 f / (y - cy).
    rows = np.arange(70, HEIGHT)
    depth = 0.5 * FOCAL / (rows - (HEIGHT - 1) / 2)
    assert np.allclose(left.disparity[70:, 40], FOCAL * BASELINE / depth, rtol=1e-5)


def test_right_picture_shifted_by_the_truth_is_the_left_one():
    left, right, _ = draw([wall(3.75)], rig())
    # 150 * 0.2 / 3.75 is a whole number of pixels: the same texels but for rounding.
    gap = np.abs(right.image[:, : WIDTH - 8].astype(int) - left.image[:, 8:])
    assert gap.max() <= 1
    assert (gap > 0).mean() < 0.1


def test_rods_of_a_pixel_s_width_are_whole_in_picture_and_truth():
    x = np.linspace(-0.4, 0.4, 23)
    rods = [panel(place, 0, 2.0, 1.2 * 2.0 / FOCAL, 0.8) for place in x]
    left, right, _ = draw([wall(), *rods], rig())
    for view in (left, right):
        near = view.disparity[HEIGHT // 2] == 15
        edges = np.flatnonzero(np.diff(np.concatenate([[0], near.astype(int), [0]])) == 1)
        assert len(edges) == len(rods)


def test_coverage_of_a_slanted_side_is_the_area_under_it():
    black = Face(
        np.array([-0.5, -0.4, 2.0]),
        np.array([1.0, 0.15, 0.0]),
        DOWN,
        (np.zeros((64, 64, 3), np.uint8),),
        (64.0, 64.0),
    )
    white = np.full((64, 64, 3), 240, np.uint8)
    back = Face(np.array([-1.0, -1, 6]), 2 * RIGHT, 2 * DOWN, (white,), unbounded=True)
    left, _, _ = draw([back, black], rig())
    column = left.image[:, 80, 0].astype(float)
    # The side's height where it crosses the middle of column 80 is known in closed form.
    top = (HEIGHT - 1) / 2 + FOCAL * (-0.4 + 0.15 * (0.5 + (80 - 79.5) * 2 / FOCAL)) / 2
    assert (column[:60] / 240).sum() == pytest.approx(top + 0.5, abs=0.1)


def test_sides_that_faces_share_let_nothing_through():
    """Two faces of a corner that points at the eye, over a bright wall."""
    dark = (np.full((64, 64, 3), 20, np.uint8),)
    bright = Face(
        np.array([-3.0, -3, 6]),
        RIGHT,
        DOWN,
        (np.full((64, 64, 3), 250, np.uint8),),
        unbounded=True,
    )
    edge = np.array([0.03, -0.3, 1.5])
    first = Face(edge, np.array([-0.4, 0, 0.3]), 0.6 * DOWN, dark, joined=(False,) * 3 + (True,))
    second = Face(edge, np.array([0.4, 0, 0.5]), 0.6 * DOWN, dark, joined=(False,) * 3 + (True,))
    for faces in ([bright, first, second], [bright, second, first]):
        for view in draw(faces, rig())[:2]:
            rows = view.image[40:55, :, 0]
            seen = view.disparity[40:55] > 6
            inner = cv2.erode(seen.astype(np.uint8), np.ones((1, 3), np.uint8)) > 0
            assert rows[inner].max() == 20


def test_face_behind_the_eye_and_edge_on_is_not_drawn():
    assert outline(panel(0, 0, -2, 1, 1), rig()) is None
    edge_on = Face(np.array([0.0, 0.0, 1.0]), DOWN, AHEAD, LEVELS)
    assert outline(edge_on, rig()) is None


def test_face_that_reaches_behind_the_eye_is_clipped():
    floor = Face(np.array([-2.0, 0.5, -3.0]), 4 * RIGHT, 9 * AHEAD, LEVELS, (400.0, 400.0))
    left, _, _ = draw([wall(), floor], rig())
    unclipped = Face(np.array([-2.0, 0.5, 0.5]), 4 * RIGHT, AHEAD, LEVELS, unbounded=True)
    expected, _, _ = draw([wall(), unclipped], rig())
    assert np.allclose(left.disparity[70:], expected.disparity[70:], rtol=1e-5)


def test_nearest_point_in_view_is_found_on_the_picture_s_border():
    floor = Face(np.array([-9.0, 0.5, 0.1]), 18 * RIGHT, 30 * AHEAD, LEVELS)
    shape = outline(floor, rig())
    bottom = 0.5 * FOCAL / (HEIGHT - 1 - (HEIGHT - 1) / 2)
    assert nearest_in_view(shape, rig()) == pytest.approx(1 / bottom)
    aside = outline(panel(50, 0, 3, 1, 1), rig())
    assert nearest_in_view(aside, rig()) == 0


def test_shadow_darkens_its_plane_and_nothing_else():
    dark = panel(0, 0, 6.0, 1.0, 1.0, shadow=0.6)
    block = panel(0, 0, 2.0, 0.1, 0.4)
    lit, _, _ = draw([wall(), block], rig())
    shaded, _, _ = draw([wall(), block, dark], rig())
    assert np.array_equal(lit.disparity, shaded.disparity)
    front = lit.disparity == 15
    assert np.array_equal(lit.image[front], shaded.image[front])
    middle = np.s_[45:50, 70:72]
    assert np.allclose(shaded.image[middle].astype(float), lit.image[middle] * 0.4, atol=2.0)


def test_sheen_moves_like_its_mirror_image_and_leaves_the_truth_alone():
    glow = np.zeros((32, 32), np.uint8)
    glow[12:20, 12:20] = 200
    flat = (np.full((64, 64, 3), 20, np.uint8),)
    plain = Face(np.array([-1.0, -1, 2]), RIGHT, DOWN, flat, unbounded=True)
    glossy = Face(
        np.array([-1.0, -1, 2]), RIGHT, DOWN, flat, unbounded=True,
        sheen=(Sheen(glow, (40.0, 20.0, 104.0, 84.0), 0.4),),
    )  # fmt: skip
    left, right, _ = draw([glossy], rig())
    dull, _, _ = draw([plain], rig())
    assert np.array_equal(left.disparity, dull.disparity)
    columns = [np.flatnonzero(view.image[52, :, 0] > 100).mean() for view in (left, right)]
    assert columns[0] - columns[1] == pytest.approx(0.4 * 15, abs=0.3)


def test_an_endless_sheen_goes_on_beyond_its_box_and_moves_as_one():
    stripes = np.tile(np.repeat(np.uint8([0, 200]), 16), (4, 1))
    flat = (np.full((64, 64, 3), 20, np.uint8),)
    sheen = Sheen(stripes, (40.0, 20.0, 72.0, 52.0), 0.5, endless=True)
    door = Face(
        np.array([-1.0, -1, 2]), RIGHT, DOWN, flat, unbounded=True, sheen=(sheen,)
    )  # fmt: skip
    left, right, _ = draw([door], rig())
    lit = [view.image[:, :, 0] > 100 for view in (left, right)]
    assert 0.3 < lit[0].mean() < 0.7, 'half of the picture, wherever it is'
    assert lit[0][5, :20].any() and lit[0][-5, -20:].any()
    # Half of 15 px: to the nearest pixel of each edge.
    shifted = [np.roll(lit[0], -shift, axis=1)[20:50, 20:-20] for shift in (7, 8)]
    assert min((moved != lit[1][20:50, 20:-20]).mean() for moved in shifted) < 0.13
    assert (lit[0] != lit[1])[20:50, 20:-20].mean() > 0.2


def test_a_car_stands_on_its_ground_within_its_length_and_mirrors_the_street():
    mirrors, cars = 0, 30
    for seed in range(cars):
        rng = np.random.default_rng(seed)
        space = Space(rng, Painter(rng, None, 0.5), 0.5, (15.0, 90.0))
        space.centre = np.array([0.0, -1.5, 0.0])
        streets._car(space, 1.0, 10.0, 0.0)
        (_shadow,), faces = space.objects
        corners = np.concatenate([face.corners() for face in faces])
        low, high = corners.min(axis=0), corners.max(axis=0)
        assert high[1] < 0.02 and 1.3 < -low[1] < 2.0, 'from the road to its roof'
        # Of what is seen from behind: its end, its side, not the far end.
        assert 7.3 < low[2] < 8.4 and high[2] < 12.8
        assert 0.0 <= low[0] < 0.3 and 1.7 < high[0] < 2.1
        mirrored = [sheen for face in faces for sheen in face.sheen]
        assert all(sheen.endless and 0 < sheen.depth_ratio < 1 for sheen in mirrored)
        mirrors += bool(mirrored)
    assert mirrors > 0.7 * cars


def test_cross_product_is_numpy_s():
    first, second = np.array([1.0, -2, 3]), np.array([0.5, 4, -1])
    assert np.allclose(cross(first, second), np.cross(first, second))


# Scenes --------------------------------------------------------------------------------------


@pytest.fixture(scope='module', params=KINDS)
def scenes(request) -> list[StereoSample]:
    return [
        render_space((7, seed), 192, 384, difficulty=0.0, kind=request.param) for seed in range(4)
    ]


def warped(sample: StereoSample, picture: np.ndarray) -> np.ndarray:
    height, width = sample.disparity.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(picture, x - sample.disparity, y, cv2.INTER_LINEAR)


def test_both_truths_agree_on_what_both_eyes_see(scenes):
    for sample in scenes:
        gap = np.abs(warped(sample, sample.disparity_right) - sample.disparity)[~sample.occluded]
        # A rectification error of some tenths of a row shows on slanted ground.
        assert np.median(gap) < 0.15
        assert (gap > 1).mean() < 0.06


def test_right_picture_warped_by_the_truth_is_the_left_one_where_visible(scenes):
    for sample in scenes:
        right = warped(sample, sample.right.astype(np.float32))
        left = sample.left.astype(np.float32)
        seen = cv2.erode((~sample.occluded).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        smooth = np.abs(cv2.Laplacian(sample.disparity, cv2.CV_32F)) < 0.3
        usable = seen & smooth
        # The eyes' exposures differ; what is left after a straight line through them is matter.
        truth = np.corrcoef(left[usable].ravel(), right[usable].ravel())[0, 1]
        assert truth > 0.9
        moved = StereoSample(
            sample.left,
            sample.right,
            sample.disparity + 4,
            sample.disparity_right,
            sample.occluded,
        )
        elsewhere = warped(moved, sample.right.astype(np.float32))
        assert truth > np.corrcoef(left[usable].ravel(), elsewhere[usable].ravel())[0, 1]


def test_same_seed_same_bytes_and_other_seed_other_scene():
    require_same_bytes_of_same_seed(lambda seed: render_space(seed, 64, 128))


@settings(max_examples=12)
@any_scene
def test_every_scene_keeps_its_promises(seed, height, width, limit, difficulty):
    sample = render_space(seed, height, width, limit, difficulty=difficulty)
    require_promises(sample, height, width, limit)


@pytest.mark.parametrize(
    ('seed', 'height', 'width', 'limit', 'difficulty'),
    [
        (2531892077, 73, 163, 8.800172788699188, 0.6734598871529389),
        (1978358720, 118, 222, 16.292712823870577, 0.8254878133935558),
        (2307826050, 85, 49, 192.72145737487264, 0.5400112050964692),
        (109809853, 73, 237, 36.92436830776532, 0.7494608262320578),
    ],
)
def test_a_face_seen_from_its_edge_stays_within_the_range(seed, height, width, limit, difficulty):
    sample = render_space(seed, height, width, limit, difficulty=difficulty)
    require_promises(sample, height, width, limit)


def test_streets_have_sky_and_rooms_have_none():
    streets = [render_space((2, seed), 96, 192, kind='street') for seed in range(6)]
    rooms = [render_space((2, seed), 96, 192, kind='room') for seed in range(6)]
    assert sum((sample.disparity < 0.2).mean() > 0.02 for sample in streets) >= 4
    assert all((sample.disparity > 0.2).all() for sample in rooms)


def test_hard_scenes_have_fainter_walls_than_easy_ones():
    def texture(difficulty: float) -> float:
        slopes = []
        for seed in range(8):
            left = render_space((4, seed), 96, 192, difficulty=difficulty, kind='room').left
            blurred = cv2.GaussianBlur(left.astype(np.float32), (0, 0), 1.5)
            slopes.append(np.median(np.abs(np.diff(blurred, axis=1))))
        return float(np.mean(slopes))

    assert texture(1.0) < texture(0.0)


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ({'height': 16}, 'too small'),
        ({'max_disparity_px': math.nan}, 'max_disparity_px'),
        ({'difficulty': -0.1}, 'difficulty'),
        ({'kind': 'cave'}, 'cave'),
    ],
)
def test_impossible_scenes_are_refused(arguments, word):
    with pytest.raises(ProceduralError, match=word):
        render_space(0, **arguments)


def test_pool_of_rooms_and_mixed_pool_say_what_they_hold(tmp_path):
    rooms = generate_pool(tmp_path / 'r', 2, 40, 72, seed=3, progress=False, scenes='rooms')
    mixed = generate_pool(tmp_path / 'm', 8, 40, 72, seed=3, progress=False, scenes='mixed')
    streets = generate_pool(tmp_path / 's', 2, 40, 72, seed=3, progress=False, scenes='streets')
    layered = generate_pool(tmp_path / 'l', 8, 40, 72, seed=3, progress=False)
    assert PairPool(tmp_path / 'r').manifest.scenes == {'rooms': 1.0}
    assert mixed.scenes == {'layered': 0.5, 'rooms': 0.5}
    assert layered.scenes == {'layered': 1.0}
    assert np.array_equal(PairPool(tmp_path / 'r')[1].left, pool_pair(rooms, 1, None).left)
    difficulty = np.random.default_rng([3, 1, 1]).uniform(*streets.difficulty)
    street = render_space((3, 1), 40, 72, difficulty=difficulty, kind='street')
    assert np.array_equal(PairPool(tmp_path / 's')[1].left, street.left)
    # Each pair of a mixed pool is the layered pool's or the rooms pool's of that number.
    kinds = set()
    for index in range(8):
        left = PairPool(tmp_path / 'm')[index].left
        is_layered = np.array_equal(left, PairPool(tmp_path / 'l')[index].left)
        assert is_layered or np.array_equal(left, pool_pair(rooms, index, None).left)
        kinds.add(is_layered)
    assert kinds == {True, False}


def test_pool_of_indoor_scenes_holds_rooms_and_some_corridors(tmp_path):
    pool = generate_pool(tmp_path, 16, 40, 72, seed=3, progress=False, scenes='indoors')
    kinds = []
    for index in range(16):
        difficulty = np.random.default_rng([3, index, 1]).uniform(*pool.difficulty)
        left = PairPool(tmp_path)[index].left
        of_kind = {
            kind: render_space((3, index), 40, 72, difficulty=difficulty, kind=kind).left
            for kind in ('room', 'corridor')
        }
        kinds.extend(kind for kind, other in of_kind.items() if np.array_equal(left, other))
    assert len(kinds) == 16 and 1 <= kinds.count('corridor') <= 8


def test_pool_refuses_scenes_it_does_not_know_and_a_change_of_mind(tmp_path):
    with pytest.raises(PoolError, match='caves'):
        generate_pool(tmp_path, 2, 40, 72, progress=False, scenes='caves')
    generate_pool(tmp_path, 1, 40, 72, progress=False)
    with pytest.raises(PoolError, match='scenes'):
        generate_pool(tmp_path, 2, 40, 72, progress=False, scenes='rooms')
