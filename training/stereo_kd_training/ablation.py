# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The papers' comparisons, repeated at any budget: one recipe per variant and seed.

    signal      DTP Table V: ground truth only, both, teacher only
    loss        DTP Table VI: L1 (Eq. 4) or KL
    modules     DTP Tables II to IV: spatial pyramid, iterative volume, no hourglass
    compact     Compact StereoNet Table 2: v1 without a teacher, v2 SL1 + focal, v3 ASL + focal;
                and SL1 + CE of its Fig. 12
    distil_prune  the table DTP lacks: neither, prune only, distil only, both

Everything but the compared thing is equal: data, crops, steps, seeds, and one teacher, which is
trained first or given. At a small budget the result is a small-scale replication and no more; the
report says how small it was.

    FOLDER/teacher/       trained once for all tables
    FOLDER/answers/       its answers with their distributions, computed once
    FOLDER/runs/NAME/     one run per different recipe and seed; tables share what they have in
                          common, and a pruned variant goes on from the unpruned one's training
    FOLDER/TABLE.json, .md, .svg
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_kd_training.recipe import Recipe, check_recipe
from stereo_kd_training.stages import Progress, RecipeRun


class AblationError(ValueError):
    """A comparison that does not exist."""


@dataclass(frozen=True)
class Budget:
    """How small the replication is.

    Attributes:
        steps: of every student.
        tune_steps: that `distil_prune` adds to all of its variants alike, after and between
            prunings or without any.
        teacher_steps: of the one teacher.
        batch_size, crop_height, crop_width: of every training.
        max_disparity_px: of every network.
        seeds: runs per variant.
        student: takes the place of DTPNet where the comparison does not need its parts. One
            whose upsampling is learned also follows the teacher's pixels, which Eq. 4 does
            not reach.
    """

    steps: int = 400
    tune_steps: int = 200
    teacher_steps: int = 1200
    batch_size: int = 4
    crop_height: int = 128
    crop_width: int = 256
    max_disparity_px: int = 128
    seeds: int = 3
    student: str = 'dtpnet'


TEACHER = 'kestrel'
# As many of a pixel's hypotheses are kept; at 128 px the teacher has 32.
TEACHER_TOP_K = 16


def _distil(signal: str, **loss: Any) -> dict[str, Any]:
    return {'distill': {'loss': {'method': 'dtp', 'signal': signal, **loss}}}


def _student(name: str, **options: Any) -> dict[str, Any]:
    return {'student': name, 'options': options}


def _pruned(signal: str) -> dict[str, Any]:
    return {**_distil(signal), 'prune': True}


# Variant -> what it changes. The head at 1/4 makes DTPNet affordable and is the same for all.
_DTP = _student('dtpnet', head='quarter')
_ANY = {**_DTP, 'any_student': True}
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    'signal': {
        'ground truth only': {**_ANY, **_distil('ground_truth')},
        'knowledge + ground truth': {**_ANY, **_distil('both')},
        'knowledge only': {**_ANY, **_distil('teacher')},
    },
    'loss': {
        'KL divergence': {**_ANY, **_distil('teacher', distance='kl')},
        'L1 norm (Eq. 4)': {**_ANY, **_distil('teacher')},
    },
    'modules': {
        'DTPNet': {**_DTP, **_distil('ground_truth')},
        '+ spatial pyramid': {
            **_student('dtpnet', head='quarter', spp=True),
            **_distil('ground_truth'),
        },
        'iterative volume': {
            **_student('dtpnet', head='quarter', volume='iterative'),
            **_distil('ground_truth'),
        },
        'no hourglass': {
            **_student('dtpnet', head='quarter', hourglasses=0),
            **_distil('ground_truth'),
        },
    },
    'compact': {
        'v1: no teacher': {
            **_student('compact_stereonet'),
            'distill': {'loss': {'method': 'compact', 'signal': 'ground_truth'}},
        },
        'SL1 + CE': {
            **_student('compact_stereonet'),
            'distill': {'loss': {'method': 'compact', 'signal': 'both', 'gamma': 0.0}},
        },
        'v2: SL1 + focal': {
            **_student('compact_stereonet'),
            'distill': {'loss': {'method': 'compact', 'signal': 'both'}},
        },
        'v3: ASL + focal': {
            **_student('compact_stereonet'),
            'distill': {
                'loss': {'method': 'compact', 'signal': 'both', 'trust': 'percentile'},
            },
        },
    },
    'distil_prune': {
        'neither': {**_ANY, **_distil('ground_truth'), 'tune': True},
        'distil only': {**_ANY, **_distil('teacher'), 'tune': True},
        'prune only': {**_ANY, **_pruned('ground_truth')},
        'distil and prune': {**_ANY, **_pruned('teacher')},
    },
}


def run_ablation(
    name: str,
    folder: Path | str,
    data: dict[str, Any],
    budget: Budget,
    progress: Progress | None = None,
    teacher: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run every variant with every seed; what is finished is not repeated.

    Args:
        name: one of `ABLATIONS`.
        folder: of the comparisons, which may share it.
        data: the `data` section of a recipe.
        budget: how long and how large.
        progress: called with (variant and stage, step, steps, text).
        teacher: the `teacher` section of a recipe; one is trained without.

    Returns:
        The report, which is also written to NAME.json, NAME.md and NAME.svg.

    Raises:
        AblationError: unknown name.
    """
    if name not in ABLATIONS:
        raise AblationError(f'unknown ablation {name!r}; one of {", ".join(ABLATIONS)}')
    folder = Path(folder)
    needs_teacher = any(
        variant['distill']['loss']['signal'] != 'ground_truth'
        for variant in ABLATIONS[name].values()
    )
    report: dict[str, Any] = {'ablation': name, 'budget': vars(budget), 'data': data, 'rows': []}
    if needs_teacher:
        report['teacher'] = teacher or _train_teacher(folder / 'teacher', data, budget, progress)
    for title, variant in ABLATIONS[name].items():
        results = [
            _run(title, variant, folder, data, budget, seed, progress, teacher)
            for seed in range(budget.seeds)
        ]
        report['rows'].append(table_row(title, results))
    write_text(folder / f'{name}.json', json.dumps(report, indent=2) + '\n')
    write_text(folder / f'{name}.md', as_markdown(report))
    draw_report(report, folder / f'{name}.svg')
    return report


def _train_teacher(
    folder: Path, data: dict[str, Any], budget: Budget, progress: Progress | None
) -> dict[str, Any]:
    """What its evaluation says."""
    recipe = check_recipe(
        {
            'name': 'teacher',
            'data': data,
            'distill': {'training': training_section(TEACHER, {}, budget, budget.teacher_steps)},
        }
    )
    return _metrics(RecipeRun(recipe, folder, labelled_progress(progress, 'teacher')).run())


def _run(
    title: str,
    variant: dict[str, Any],
    folder: Path,
    data: dict[str, Any],
    budget: Budget,
    seed: int,
    progress: Progress | None,
    teacher: dict[str, Any] | None,
) -> dict[str, Any]:
    """One variant with one seed: the metrics of its last network."""
    content = variant_recipe(variant, data, budget, seed, folder, teacher)
    heard = labelled_progress(progress, f'{slug(title)}-{seed}')
    here = folder / 'runs' / run_name(content)
    base = {key: value for key, value in content.items() if key not in ('prune', 'tune')}
    if base != content and not (here / 'recipe.json').is_file():
        shorter = folder / 'runs' / run_name(base)
        _adopt_answers(base, shorter)
        RecipeRun(_named(base), shorter, heard).run()
        _adopt(shorter, here, ('cache', 'distill'))
    _adopt_answers(content, here)
    metrics = _metrics(RecipeRun(_named(content), here, heard).run())
    return {**metrics, 'network': content['distill']['training']['network']}


def _adopt_answers(content: dict[str, Any], here: Path) -> None:
    """Take over from another run that the teacher has answered all of these pairs."""
    asked = _named(content).model_dump(mode='json')
    for other in sorted(here.parent.glob('*/recipe.json')):
        before = json.loads(other.read_text())
        if all(before[section] == asked[section] for section in ('data', 'teacher')):
            _adopt(other.parent, here, ('cache',))


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    return list(summary['evaluate']['metrics'].values())[-1]


def run_name(content: dict[str, Any]) -> str:
    """A folder name that two recipes share only if they are the same but for their names."""
    described = json.dumps({**content, 'name': ''}, sort_keys=True).encode()
    network = content['distill']['training']['network']
    return f'{network}-{hashlib.sha256(described).hexdigest()[:12]}'


def _named(content: dict[str, Any]) -> Recipe:
    return check_recipe({**content, 'name': run_name(content)})


def _adopt(source: Path, here: Path, stages: Sequence[str]) -> None:
    """Copy finished stages of another run, each whole or not at all."""
    here.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if (source / stage / 'done.json').is_file() and not (here / stage).exists():
            partial = here / f'.{stage}.{os.getpid()}'
            shutil.copytree(source / stage, partial)
            os.replace(partial, here / stage)


def write_text(path: Path, text: str) -> None:
    """Of a report, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def training_section(
    network: str, options: dict[str, Any], budget: Budget, steps: int
) -> dict[str, Any]:
    """`training` of a recipe, the same for everything that is compared."""
    return {
        'network': network,
        'options': {'max_disparity_px': budget.max_disparity_px, **options},
        'steps': steps,
        'batch_size': budget.batch_size,
        'crop_height': budget.crop_height,
        'crop_width': budget.crop_width,
        'peak_learning_rate': 1e-3,
        'validate_every': steps,
        'checkpoint_every': max(1, steps // 10),
        'log_every': max(1, steps // 20),
        'validation_pairs': 1,
        'precision': 'no',
        'ema_decay': 0.98,
    }


def variant_recipe(
    variant: dict[str, Any],
    data: dict[str, Any],
    budget: Budget,
    seed: int,
    folder: Path,
    teacher: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The recipe of one run: `variant` of `ABLATIONS`.

    Args:
        teacher: as of `run_ablation`; without it the one that was trained in `folder` teaches.
    """
    distill = copy.deepcopy(variant['distill'])
    student, options = variant['student'], variant['options']
    if variant.get('any_student') and budget.student != student:
        student, options = budget.student, {}
        distill['loss'].update(ground_truth='supervised', teacher_pixels=0.3)
    distill['training'] = training_section(student, options, budget, budget.steps)
    recipe: dict[str, Any] = {'name': 'run', 'seed': seed, 'data': data, 'distill': distill}
    if distill['loss']['signal'] != 'ground_truth':
        recipe['teacher'] = teacher or {
            'network': TEACHER,
            'checkpoint': str(folder / 'teacher' / 'distill' / 'checkpoint.pt'),
            'cache': True,
            'cache_folder': str(folder / 'answers'),
            'top_k': TEACHER_TOP_K,
        }
    if variant.get('prune'):
        recipe['prune'] = {
            'ratio': 0.37,
            'steps': 2,
            'tune_steps': max(1, budget.tune_steps // 2),
            'round_to': 1,
        }
    if variant.get('tune'):
        # As many steps, as gentle, as the pruned variants get after their prunings.
        training = training_section(student, options, budget, 2 * max(1, budget.tune_steps // 2))
        training['peak_learning_rate'] /= 3
        recipe['tune'] = {'training': training, 'loss': distill['loss']}
    return recipe


def table_row(title: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """One variant's metrics of every seed, with mean and standard deviation."""
    epes = [result['validation']['epe_px'] for result in results]
    bad3 = [result['validation']['bad3'] for result in results]
    return {
        'variant': title,
        'network': results[0]['network'],
        'parameters': results[0]['parameters'],
        'macs_640x480': results[0]['macs_640x480'],
        'epe_px': epes,
        'epe_px_mean': statistics.mean(epes),
        'epe_px_spread': deviation(epes),
        'bad3': bad3,
        'bad3_mean': statistics.mean(bad3),
        'bad3_spread': deviation(bad3),
    }


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over the seeds; 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table with what it was measured on, spread as standard deviation."""
    budget = report['budget']
    lines = [
        f'### {report["ablation"]}',
        '',
        f'A small-scale replication: {budget["steps"]} steps of {budget["batch_size"]} crops of '
        f'{budget["crop_width"]}x{budget["crop_height"]}, {budget["seeds"]} seeds, disparities '
        f'below {budget["max_disparity_px"]} px{_taught(report)}. '
        'Mean ± standard deviation over the seeds.',
        '',
        '| variant | network | parameters | GMAC | EPE px | bad-3 % |',
        '|---|---|---:|---:|---:|---:|',
    ]
    lines += [
        f'| {row["variant"]} | `{row["network"]}` | {row["parameters"]:,} '
        f'| {row["macs_640x480"] / 1e9:.2f} '
        f'| {row["epe_px_mean"]:.2f} ± {row["epe_px_spread"]:.2f} '
        f'| {row["bad3_mean"]:.1f} ± {row["bad3_spread"]:.1f} |'
        for row in report['rows']
    ]
    return '\n'.join(lines) + '\n'


def _taught(report: dict[str, Any]) -> str:
    if 'teacher' not in report:
        return ', no teacher'
    teacher = report['teacher']
    if 'validation' not in teacher:
        given = teacher.get('network') or Path(teacher.get('onnx') or teacher['folder']).name
        return f', taught by {given}'
    error = teacher['validation']['epe_px']
    return f', a teacher of {report["budget"]["teacher_steps"]} steps and {error:.2f} px'


PANELS = (('epe_px', 'EPE [px]'), ('bad3', 'bad-3 [%]'))
"""What a chart shows of every row by default: its key, of one figure per seed, and its title."""


def draw_report(
    report: dict[str, Any], path: Path, panels: Sequence[tuple[str, str]] = PANELS
) -> None:
    """A chart beside the table: each variant's mean, its spread, and every seed as a dot."""
    import matplotlib

    matplotlib.use('Agg')
    # The same report gives the same file.
    matplotlib.rcParams['svg.hashsalt'] = report['ablation']
    from matplotlib import pyplot

    rows = report['rows'][::-1]
    size = (2 + 3 * len(panels), 0.9 + 0.42 * len(rows))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True)
    for axis, (key, label) in zip(axes, panels):
        for place, row in enumerate(rows):
            mean, spread = statistics.mean(row[key]), deviation(row[key])
            axis.barh(place, mean, color='#8fb3d9', height=0.6)
            axis.errorbar(mean, place, xerr=spread, color='#1f3b5c', capsize=4)
            axis.plot(row[key], [place] * len(row[key]), 'o', color='#1f3b5c', markersize=3)
        axis.set_xlabel(f'{label}, less is better')
        axis.set_yticks(range(len(rows)), [row['variant'] for row in rows])
        axis.spines[['top', 'right']].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None})
    pyplot.close(figure)


def labelled_progress(progress: Progress | None, label: str) -> Progress | None:
    """Reports stages with `label` before their names."""
    if progress is None:
        return None
    report: Callable[..., None] = progress

    def labelled(stage: str, step: int, steps: int, text: str) -> None:
        report(f'{label} {stage}', step, steps, text)

    return labelled


def slug(title: str) -> str:
    """A title as a name of a folder."""
    kept = ''.join(c if c.isalnum() else '_' for c in title.lower())
    return '_'.join(part for part in kept.split('_') if part)
