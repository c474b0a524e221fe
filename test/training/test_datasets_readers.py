# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every reader on a tiny tree of its own layout, and what it says to a wrong root."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from stereo_kd_ros.disparity_io import DisparityFileError, write_kitti_png, write_pfm
from stereo_kd_training.datasets.base import (
    DatasetError,
    PairFiles,
    StereoDataset,
    positive_disparity,
    read_rgb,
)
from stereo_kd_training.datasets.eth3d import eth3d
from stereo_kd_training.datasets.folder import stereo_folder
from stereo_kd_training.datasets.kitti import fold, kitti2012, kitti2015
from stereo_kd_training.datasets.labelled import labelled_sets
from stereo_kd_training.datasets.middlebury import middlebury, middlebury_eval3
from stereo_kd_training.datasets.scene_flow import driving, flying_things, monkaa, scene_flow

SIZE = (6, 8)  # rows, columns
# One disparity that every format can hold, and one unknown pixel.
TRUTH = np.full(SIZE, 4.0, np.float32)
TRUTH[2, 3] = np.nan


def picture(path: Path, value: int = 50, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Blue, green, red as OpenCV writes them; grey endings hold grey.
    bgr = np.full((*size, 3), (value, value + 1, value + 2), np.uint8)
    cv2.imwrite(str(path), bgr[..., 0] if path.suffix == '.pgm' else bgr)


def pair(left: Path, right: Path) -> None:
    picture(left, 50)
    picture(right, 100)


def pfm(path: Path, sign: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pfm(path, sign * np.where(np.isfinite(TRUTH), TRUTH, np.inf))


def steps(path: Path, per_px: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(size, 4 * per_px, np.uint8)
    values[2, 3] = 0
    cv2.imwrite(str(path), values)


def check(dataset: StereoDataset, count: int = 1) -> None:
    """All pairs hold the pictures and the truth above, and can go to another process."""
    assert len(dataset) == count
    assert len({item.name for item in dataset}) == count
    for sample in pickle.loads(pickle.dumps(dataset)):
        assert sample.left.dtype == sample.right.dtype == np.uint8
        assert sample.left.shape == (*sample.disparity.shape, 3)
        assert sample.left.mean() < sample.right.mean()
        assert sample.disparity.dtype == np.float32
        assert np.isnan(sample.disparity[2, 3])
        assert sample.valid.sum() == sample.disparity.size - 1
        np.testing.assert_array_equal(sample.disparity[sample.valid], 4.0)


def flying_tree(base: Path, prefix: str = '', disparity: str = 'disparity') -> None:
    for split in ('TRAIN', 'TEST'):
        for number in ('0006', '0007'):
            scene = f'{split}/B/0012'
            frames = base / f'{prefix}frames_cleanpass' / scene
            pair(frames / f'left/{number}.png', frames / f'right/{number}.png')
            pfm(base / f'{prefix}{disparity}' / scene / f'left/{number}.pfm')
            pfm(base / f'{prefix}{disparity}' / scene / f'right/{number}.pfm', -1.0)


def monkaa_tree(base: Path, prefix: str = '') -> None:
    frames = base / f'{prefix}frames_cleanpass/family_x2'
    pair(frames / 'left/0000.png', frames / 'right/0000.png')
    pfm(base / f'{prefix}disparity/family_x2/left/0000.pfm')


def driving_tree(base: Path, prefix: str = '') -> None:
    for focal in ('15mm_focallength', '35mm_focallength'):
        scene = f'{focal}/scene_forwards/fast'
        frames = base / f'{prefix}frames_cleanpass' / scene
        pair(frames / 'left/0001.png', frames / 'right/0001.png')
        pfm(base / f'{prefix}disparity' / scene / 'left/0001.pfm')


@pytest.mark.parametrize('folder', ['', 'FlyingThings3D'])
@pytest.mark.parametrize('prefix', ['', 'flyingthings3d_'])
@pytest.mark.parametrize('disparity', ['disparity', 'frames_disparity'])
def test_flying_things_layouts(tmp_path: Path, folder: str, prefix: str, disparity: str) -> None:
    flying_tree(tmp_path / folder, prefix, disparity)
    check(flying_things(tmp_path), 2)
    test = flying_things(tmp_path, 'test')
    check(test, 2)
    assert test.pairs[0].name == 'TEST/B/0012/left/0006'


def test_flying_things_subset_stores_negative_disparities(tmp_path: Path) -> None:
    base = tmp_path / 'FlyingThings3D_subset' / 'val'
    frames = base / 'image_final'
    pair(frames / 'left/0000001.png', frames / 'right/0000001.png')
    pfm(base / 'disparity/left/0000001.pfm', -1.0)
    check(flying_things(tmp_path, 'test', 'final'))


def test_final_pass_is_not_the_clean_one(tmp_path: Path) -> None:
    flying_tree(tmp_path)
    with pytest.raises(DatasetError, match=r'final pass.*\n.*frames_finalpass'):
        flying_things(tmp_path, render='final')


def test_official_test_is_all_of_it(tmp_path: Path) -> None:
    flying_tree(tmp_path)
    with pytest.raises(DatasetError, match=r'4370 pairs.*2 were found'):
        flying_things(tmp_path, 'test', official=True)


def test_unused_frames_are_left_out(tmp_path: Path) -> None:
    flying_tree(tmp_path)
    unused = tmp_path / 'all_unused_files.txt'
    unused.write_text('TRAIN/A/0004/left/0008.png\nTRAIN/B/0012/left/0006.png\n')
    assert [p.name for p in flying_things(tmp_path, unused=unused).pairs] == [
        'TRAIN/B/0012/left/0007'
    ]


@pytest.mark.parametrize('arrangement', ['folders', 'prefixes'])
def test_whole_scene_flow(tmp_path: Path, arrangement: str) -> None:
    trees = {'monkaa': monkaa_tree, 'driving': driving_tree}
    if arrangement == 'folders':
        flying_tree(tmp_path / 'FlyingThings3D')
        for name, tree in trees.items():
            tree(tmp_path / name.capitalize())
    else:
        # FlyingThings3D bare, the others with their names: PSMNet's and GwcNet's way.
        flying_tree(tmp_path)
        for name, tree in trees.items():
            tree(tmp_path, f'{name}_')
    check(monkaa(tmp_path), 1)
    check(driving(tmp_path), 2)
    check(scene_flow(tmp_path, 'train'), 5)
    check(scene_flow(tmp_path, 'test'), 2)


def test_scene_flow_without_monkaa_says_so(tmp_path: Path) -> None:
    flying_tree(tmp_path)
    with pytest.raises(DatasetError, match=r'Monkaa.*\n.*monkaa.*\n.*\nFound there: disparity/'):
        scene_flow(tmp_path)


def test_incomplete_download(tmp_path: Path) -> None:
    flying_tree(tmp_path)
    lost = tmp_path / 'disparity/TRAIN/B/0012/left/0007.pfm'
    lost.unlink()
    with pytest.raises(DatasetError, match=r'1 of 2 pairs lack a file.*0007\.pfm'):
        flying_things(tmp_path)
    check(flying_things(tmp_path, skip_incomplete=True), 1)


def test_unknown_split_and_pass(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'valid'"):
        flying_things(tmp_path, 'valid')  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="'cleanpass'"):
        monkaa(tmp_path, 'cleanpass')  # type: ignore[arg-type]


def kitti_tree(base: Path, views: tuple[str, str], truth: str, count: int = 1) -> None:
    for index in range(count):
        name = f'{index:06d}_10.png'
        for split in ('training', 'testing'):
            pair(base / split / views[0] / name, base / split / views[1] / name)
            picture(base / split / views[0] / f'{index:06d}_11.png')
        (base / 'training' / truth).mkdir(parents=True, exist_ok=True)
        write_kitti_png(base / 'training' / truth / name, TRUTH)


@pytest.mark.parametrize('folder', ['', 'data_scene_flow', 'KITTI_2015'])
def test_kitti2015(tmp_path: Path, folder: str) -> None:
    kitti_tree(tmp_path / folder, ('image_2', 'image_3'), 'disp_occ_0', 2)
    check(kitti2015(tmp_path), 2)
    if not folder:
        check(kitti2015(tmp_path / 'training'), 2)
    with pytest.raises(DatasetError, match=r'disp_noc_0/000000_10\.png'):
        kitti2015(tmp_path, occluded=False)


@pytest.mark.parametrize('views', [('colored_0', 'colored_1'), ('image_0', 'image_1')])
def test_kitti2012(tmp_path: Path, views: tuple[str, str]) -> None:
    kitti_tree(tmp_path, views, 'disp_noc')
    check(kitti2012(tmp_path, occluded=False))


def test_kitti_test_pairs_have_no_truth(tmp_path: Path) -> None:
    kitti_tree(tmp_path, ('image_2', 'image_3'), 'disp_occ_0')
    (sample,) = kitti2015(tmp_path, 'testing')
    assert not sample.valid.any()


def test_kitti_years_are_not_mixed_up(tmp_path: Path) -> None:
    kitti_tree(tmp_path, ('image_2', 'image_3'), 'disp_occ_0')
    with pytest.raises(DatasetError, match=r'kitti2012.*\n.*colored_0.*\n[^F]*Found.*training/'):
        kitti2012(tmp_path)


def test_every_pair_is_held_out_once(tmp_path: Path) -> None:
    kitti_tree(tmp_path, ('image_2', 'image_3'), 'disp_occ_0', 7)
    dataset = kitti2015(tmp_path)
    everything = {item.name for item in dataset.pairs}
    held_out = []
    for index in range(5):
        training, validation = fold(dataset, index)
        names = {item.name for item in training.pairs}
        held_out += [item.name for item in validation.pairs]
        assert names.isdisjoint(held_out[-len(validation) :])
        assert names | {item.name for item in validation.pairs} == everything
    assert sorted(held_out) == sorted(everything)
    again = fold(dataset, 2)[1]
    assert [item.name for item in again.pairs] == [p.name for p in fold(dataset, 2)[1].pairs]
    assert fold(dataset, 2, seed=1)[1].pairs != again.pairs
    for arguments in ((5, 5), (-1, 5), (0, 8), (0, 1)):
        with pytest.raises(DatasetError, match='fold'):
            fold(dataset, *arguments)


def middlebury_tree(base: Path, year: str) -> None:
    if year == '2001':
        pair(base / 'venus/im2.ppm', base / 'venus/im6.ppm')
        steps(base / 'venus/disp2.pgm', 8)
        pair(base / 'map/im0.pgm', base / 'map/im1.pgm')
        steps(base / 'map/disp0.pgm', 8)
        scene = base / 'tsukuba'
        pair(scene / 'scene1.row3.col3.ppm', scene / 'scene1.row3.col4.ppm')
        steps(scene / 'truedisp.row3.col3.pgm', 16)
    elif year in ('2014', '2021'):
        for scene in ('Adirondack-perfect', 'Piano-perfect', 'chess1'):
            pair(base / scene / 'im0.png', base / scene / 'im1.png')
            pfm(base / scene / 'disp0.pfm')


@pytest.mark.parametrize('year', ['2001', '2014', '2021'])
@pytest.mark.parametrize('folder', ['', 'year', 'middlebury'])
def test_middlebury_years(tmp_path: Path, year: str, folder: str) -> None:
    below = {'': '', 'year': year, 'middlebury': f'middlebury{year}'}[folder]
    middlebury_tree(tmp_path / below, year)
    check(middlebury(tmp_path, year), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    'width, per_px, ending', [(450, 4, 'png'), (900, 2, 'ppm'), (1800, 1, 'ppm')]
)
def test_middlebury_2003_sizes(tmp_path: Path, width: int, per_px: int, ending: str) -> None:
    scene, size = tmp_path / 'conesX', (4, width)
    picture(scene / f'im2.{ending}', 50, size)
    picture(scene / f'im6.{ending}', 100, size)
    steps(scene / ('disp2.png' if ending == 'png' else 'disp2.pgm'), per_px, size)
    check(middlebury(tmp_path, '2003'))


@pytest.mark.parametrize('height, per_px', [(370, 3), (555, 2), (1110, 1)])
@pytest.mark.parametrize('views', ['', 'Illum1/Exp1'])
@pytest.mark.parametrize('year', ['2005', '2006'])
def test_middlebury_2005_sizes(
    tmp_path: Path, height: int, per_px: int, views: str, year: str
) -> None:
    scene, size = tmp_path / 'Art', (height, 5)
    picture(scene / views / 'view1.png', 50, size)
    picture(scene / views / 'view5.png', 100, size)
    steps(scene / 'disp1.png', per_px, size)
    check(middlebury(tmp_path, year))  # type: ignore[arg-type]


def benchmark_tree(pictures: Path, truths: Path) -> None:
    pair(pictures / 'im0.png', pictures / 'im1.png')
    pfm(truths / 'disp0GT.pfm')
    mask = np.full(SIZE, 255, np.uint8)
    mask[0] = 128
    cv2.imwrite(str(truths / 'mask0nocc.png'), mask)


@pytest.mark.parametrize('folder', ['', 'MiddEval3'])
def test_middlebury_eval3(tmp_path: Path, folder: str) -> None:
    scene = tmp_path / folder / 'trainingH/Teddy'
    benchmark_tree(scene, scene)
    check(middlebury_eval3(tmp_path, 'H'))
    (sample,) = middlebury_eval3(tmp_path, 'H', non_occluded=True)
    assert not sample.valid[0].any()
    assert sample.valid[1:].sum() == 5 * 8 - 1
    with pytest.raises(DatasetError, match='trainingQ'):
        middlebury_eval3(tmp_path)


def test_middlebury_eval3_without_its_mask(tmp_path: Path) -> None:
    scene = tmp_path / 'trainingQ/Teddy'
    benchmark_tree(scene, scene)
    (scene / 'mask0nocc.png').unlink()
    with pytest.raises(DatasetError, match=r'mask0nocc\.png.*found none'):
        middlebury_eval3(tmp_path, non_occluded=True)[0]


def test_middlebury_wrong_year(tmp_path: Path) -> None:
    middlebury_tree(tmp_path, '2014')
    with pytest.raises(DatasetError, match=r'2006.*\n.*view1\.png.*\n.*\nFound there: Adir'):
        middlebury(tmp_path, '2006')
    with pytest.raises(DatasetError, match=r"'1999'.*2001"):
        middlebury(tmp_path, '1999')  # type: ignore[arg-type]


@pytest.mark.parametrize('apart', [True, False])
def test_eth3d(tmp_path: Path, apart: bool) -> None:
    scene = tmp_path / 'two_view_training/forest_1s'
    truths = tmp_path / 'two_view_training_gt/forest_1s' if apart else scene
    truths.mkdir(parents=True)
    benchmark_tree(scene, truths)
    check(eth3d(tmp_path))
    (sample,) = eth3d(tmp_path, non_occluded=True)
    assert sample.valid.sum() == 5 * 8 - 1


def test_eth3d_without_truth(tmp_path: Path) -> None:
    scene = tmp_path / 'two_view_training/forest_1s'
    pair(scene / 'im0.png', scene / 'im1.png')
    with pytest.raises(DatasetError, match=r'1 of 1 pairs.*two_view_training_gt'):
        eth3d(tmp_path)
    scene.parent.rename(tmp_path / 'two_view_test')
    assert not eth3d(tmp_path, 'test')[0].valid.any()


def folder_tree(root: Path, write: Callable[[Path], None], ending: str) -> None:
    for name in ('a', 'b'):
        pair(root / f'left/{name}.png', root / f'right/{name}.png')
        truth = root / f'disparity/{name}{ending}'
        truth.parent.mkdir(exist_ok=True)
        write(truth)


@pytest.mark.parametrize(
    'write, ending',
    [
        (pfm, '.pfm'),
        (lambda path: write_kitti_png(path, TRUTH), '.png'),
        (lambda path: np.save(path, TRUTH.astype(np.float64)), '.npy'),
    ],
    ids=['pfm', 'png', 'npy'],
)
def test_folder(tmp_path: Path, write: Callable[[Path], None], ending: str) -> None:
    folder_tree(tmp_path, write, ending)
    check(stereo_folder(tmp_path), 2)


def test_folder_of_eight_bit_maps(tmp_path: Path) -> None:
    folder_tree(tmp_path, lambda path: steps(path, 10), '.png')
    check(stereo_folder(tmp_path, steps_per_px=10), 2)
    with pytest.raises(DisparityFileError, match='16-bit'):
        stereo_folder(tmp_path)[0]


def test_folder_without_truth(tmp_path: Path) -> None:
    pair(tmp_path / 'cam0/1.jpg', tmp_path / 'cam1/1.png')
    dataset = stereo_folder(tmp_path, 'cam0', 'cam1')
    assert not dataset[0].valid.any()
    with pytest.raises(DatasetError, match=r'gt: no disparity for 1 of 1.*1\{\.pfm'):
        stereo_folder(tmp_path, 'cam0', 'cam1', 'gt')


def test_folder_faults(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r'(?s)left/\*\.png.*the folder is empty'):
        stereo_folder(tmp_path)
    pair(tmp_path / 'left/1.png', tmp_path / 'right/1.png')
    picture(tmp_path / 'left/2.png')
    with pytest.raises(DatasetError, match='without a counterpart: 2'):
        stereo_folder(tmp_path)
    (tmp_path / 'left/2.png').unlink()
    (tmp_path / 'disparity').mkdir()
    (tmp_path / 'disparity/1.npy').write_bytes(b'nonsense')
    with pytest.raises(DatasetError, match=r'1\.npy: not a NumPy'):
        stereo_folder(tmp_path)[0]
    np.save(tmp_path / 'disparity/1.npy', np.zeros((2, 3, 4)))
    with pytest.raises(DatasetError, match=r'\(2, 3, 4\)'):
        stereo_folder(tmp_path)[0]


def test_benchmark_folder(tmp_path: Path) -> None:
    for scene in ('kitti2015/1', 'middlebury2003/1', 'middlebury2005/1', 'sceneflow/1'):
        pair(tmp_path / scene / 'left.png', tmp_path / scene / 'right.png')
    write_kitti_png(tmp_path / 'kitti2015/1/disp_noc.png', TRUTH)
    steps(tmp_path / 'middlebury2003/1/disp.png', 4)
    steps(tmp_path / 'middlebury2005/1/disp.png', 3)
    pfm(tmp_path / 'sceneflow/1/disp.pfm')
    pair(tmp_path / 'unlabelled/1/left.png', tmp_path / 'unlabelled/1/right.png')
    (tmp_path / 'weights').mkdir()
    found = labelled_sets(tmp_path)
    assert list(found) == ['kitti2015', 'middlebury2003', 'middlebury2005', 'sceneflow']
    for dataset in found.values():
        check(dataset)
    assert list(labelled_sets(tmp_path, ['sceneflow'])) == ['sceneflow']
    with pytest.raises(DatasetError, match=r"\['eth3d'\].*it has.*'sceneflow'"):
        labelled_sets(tmp_path, ['eth3d', 'sceneflow'])


def test_all_pixels_go_before_the_non_occluded_ones(tmp_path: Path) -> None:
    scene = tmp_path / 'kitti2012/1'
    pair(scene / 'left.png', scene / 'right.png')
    write_kitti_png(scene / 'disp_noc.png', TRUTH * 2)
    write_kitti_png(scene / 'disp_occ.png', TRUTH)
    check(labelled_sets(tmp_path)['kitti2012'])


def test_a_root_that_does_not_exist_shows_what_does(tmp_path: Path) -> None:
    (tmp_path / 'Kitti').mkdir()
    with pytest.raises(DatasetError, match=r'(?s)does not exist.*nearest.*Kitti/'):
        labelled_sets(tmp_path / 'kitty')
    file = tmp_path / 'archive.zip'
    file.touch()
    with pytest.raises(DatasetError, match='a file, not a folder'):
        kitti2015(file)


def test_sizes_must_agree(tmp_path: Path) -> None:
    picture(tmp_path / 'l.png')
    picture(tmp_path / 'r.png', size=(6, 9))
    files = PairFiles('x', tmp_path / 'l.png', tmp_path / 'r.png')
    with pytest.raises(DatasetError, match=r'set x: the left image is 8x6 and the right one 9x6'):
        StereoDataset('set', [files])[0]
    pfm(tmp_path / 'd.pfm')
    files = PairFiles('x', tmp_path / 'r.png', tmp_path / 'r.png', tmp_path / 'd.pfm')
    with pytest.raises(DatasetError, match=r'9x6 and the disparity 8x6'):
        StereoDataset('set', [files])[0]


def test_pictures_come_as_rgb(tmp_path: Path) -> None:
    picture(tmp_path / 'colour.png', 10)
    np.testing.assert_array_equal(read_rgb(tmp_path / 'colour.png')[0, 0], [12, 11, 10])
    cv2.imwrite(str(tmp_path / 'grey.png'), np.full((2, 2), 9, np.uint8))
    np.testing.assert_array_equal(read_rgb(tmp_path / 'grey.png'), np.full((2, 2, 3), 9))
    (tmp_path / 'bad.png').write_bytes(b'no picture')
    for name in ('bad.png', 'absent.png'):
        with pytest.raises(DatasetError, match=name):
            read_rgb(tmp_path / name)


def test_sign_and_mark() -> None:
    given = np.array([[-3.0, -4.5, np.inf, -np.inf, np.nan, 0.0]], np.float32)
    expected = [[3.0, 4.5, np.nan, np.nan, np.nan, np.nan]]
    np.testing.assert_array_equal(positive_disparity(given), expected)
    # A few negative values are unknown pixels, not another sign.
    np.testing.assert_array_equal(
        positive_disparity(np.array([[3.0, 4.5, -1.0, 0.0]], np.float32)),
        [[3.0, 4.5, np.nan, np.nan]],
    )


def test_joined_and_subset(tmp_path: Path) -> None:
    flying_tree(tmp_path)
    dataset = flying_things(tmp_path)
    assert [item.name for item in dataset.subset([1]).pairs] == [dataset.pairs[1].name]
    both = StereoDataset.joined('both', [dataset, flying_things(tmp_path, 'test')])
    assert len(both) == 4
    assert both.pairs[0].name == f'flyingthings3d/{dataset.pairs[0].name}'
    with pytest.raises(IndexError):
        both[4]


REAL = {
    # Set: pairs that must be there, range of the truth in pixels as published beside it.
    'kitti2012': ('000000_10', None),
    'kitti2015': ('000002_10', (5.59, 66.80)),
    'middlebury2001': ('barn1', (3.50, 16.38)),
    'middlebury2003': ('Cones', (5.50, 55.00)),
    'middlebury2005': ('Books', (21.67, 73.67)),
    'middlebury2006': ('Baby1', (8.33, 45.33)),
    'middlebury2014': ('Motorcycle', (9.18, 62.88)),
    'sceneflow': ('TEST_A_0000_0006', (1.17, 99.39)),
}


@pytest.mark.parametrize('name', REAL)
def test_real_samples(data_dir: Path, name: str) -> None:
    scene, limits = REAL[name]
    dataset = labelled_sets(data_dir, [name])[name]
    names = [item.name for item in dataset.pairs]
    sample = dataset[names.index(scene)]
    assert sample.left.shape == sample.right.shape == (*sample.disparity.shape, 3)
    if limits is not None:
        found = np.nanmin(sample.disparity), np.nanmax(sample.disparity)
        assert found == pytest.approx(limits, abs=0.006)
