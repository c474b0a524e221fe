# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The papers' comparisons, repeated at any budget: one recipe per variant and seed.

    signal      DTP Table V: ground truth only, both, teacher only
    loss        DTP Table VI: L1 (Eq. 4) or KL
    modules     DTP Tables II to IV: spatial pyramid, iterative volume, no hourglass
    compact     Compact StereoNet Table 2: v1 without a teacher, v2 SL1 + CE, v3 ASL + focal
    distil_prune  the table DTP lacks: neither, prune only, distil only, both

Everything but the compared thing is equal: data, crops, steps, seeds, and one teacher that is
trained first. At a small budget the result is a small-scale replication and no more; the report
says how small it was.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_kd_training.recipe import check_recipe
from stereo_kd_training.stages import Progress, RecipeRun


class AblationError(ValueError):
    """A comparison that does not exist."""


@dataclass(frozen=True)
class Budget:
    """How small the replication is.

    Attributes:
        steps: of every student; pruning takes as many again, for all variants alike.
        teacher_steps: of the one teacher.
        batch_size, crop_height, crop_width: of every training.
        max_disparity_px: of every network.
        seeds: runs per variant.
        student: takes the place of DTPNet where the comparison does not need its parts. One
            whose upsampling is learned also follows the teacher's pixels, which Eq. 4 does
            not reach.
    """

    steps: int = 400
    teacher_steps: int = 1200
    batch_size: int = 4
    crop_height: int = 128
    crop_width: int = 256
    max_disparity_px: int = 128
    seeds: int = 3
    student: str = 'dtpnet'


TEACHER = 'kestrel'


def _distil(signal: str, **loss: Any) -> dict[str, Any]:
    return {'distill': {'loss': {'method': 'dtp', 'signal': signal, **loss}}}


def _student(name: str, **options: Any) -> dict[str, Any]:
    return {'student': name, 'options': options}


def _pruned(signal: str) -> dict[str, Any]:
    return {**_distil(signal), 'prune': True}


# Variant -> what it changes. The head at 1/4 makes DTPNet affordable and is the same for all.
_DTP = _student('dtpnet', head='quarter')
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    'signal': {
        'ground truth only': {**_DTP, **_distil('ground_truth')},
        'knowledge + ground truth': {**_DTP, **_distil('both')},
        'knowledge only': {**_DTP, **_distil('teacher')},
    },
    'loss': {
        'KL divergence': {**_DTP, **_distil('teacher', distance='kl')},
        'L1 norm (Eq. 4)': {**_DTP, **_distil('teacher', distance='l1')},
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
        'v2: SL1 + CE': {
            **_student('compact_stereonet'),
            'distill': {'loss': {'method': 'compact', 'signal': 'both', 'gamma': 0.0}},
        },
        'v3: ASL + focal': {
            **_student('compact_stereonet'),
            'distill': {
                'loss': {'method': 'compact', 'signal': 'both', 'trust': 'percentile'},
            },
        },
    },
    'distil_prune': {
        'neither': {**_DTP, **_distil('ground_truth'), 'tune': True},
        'distil only': {**_DTP, **_distil('teacher'), 'tune': True},
        'prune only': {**_DTP, **_pruned('ground_truth')},
        'distil and prune': {**_DTP, **_pruned('teacher')},
    },
}


def run_ablation(
    name: str,
    folder: Path | str,
    data: dict[str, Any],
    budget: Budget,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run every variant with every seed; what is finished is not repeated.

    Args:
        name: one of `ABLATIONS`.
        folder: of the comparison.
        data: the `data` section of a recipe.
        budget: how long and how large.
        progress: called with (variant and stage, step, steps, text).

    Returns:
        The report, which is also written to report.json and report.md.

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
    teacher = folder / 'teacher'
    if needs_teacher:
        _train_teacher(teacher, data, budget, progress)
    rows = []
    for title, variant in ABLATIONS[name].items():
        results = []
        for seed in range(budget.seeds):
            label = f'{_slug(title)}-{seed}'
            recipe = check_recipe(variant_recipe(label, variant, data, budget, seed, teacher))
            run = RecipeRun(recipe, folder / label, _labelled(progress, label))
            metrics = run.run()['evaluate']['metrics']
            results.append(list(metrics.values())[-1])
        rows.append(_row(title, results))
    report = {'ablation': name, 'budget': vars(budget), 'data': data, 'rows': rows}
    (folder / 'report.json').write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    (folder / 'report.md').write_text(as_markdown(report), encoding='utf-8')
    return report


def _train_teacher(
    folder: Path, data: dict[str, Any], budget: Budget, progress: Progress | None
) -> None:
    recipe = check_recipe(
        {
            'name': 'teacher',
            'data': data,
            'distill': {'training': _training(TEACHER, {}, budget, budget.teacher_steps)},
        }
    )
    RecipeRun(recipe, folder, _labelled(progress, 'teacher')).run()


def _training(network: str, options: dict[str, Any], budget: Budget, steps: int) -> dict[str, Any]:
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
        'precision': 'no',
        'ema_decay': 0.98,
    }


def variant_recipe(
    label: str,
    variant: dict[str, Any],
    data: dict[str, Any],
    budget: Budget,
    seed: int,
    teacher: Path,
) -> dict[str, Any]:
    """The recipe of one run: `variant` of `ABLATIONS`, taught by what lies in `teacher`."""
    distill = copy.deepcopy(variant['distill'])
    student, options = variant['student'], variant['options']
    if student == 'dtpnet' and options == _DTP['options'] and budget.student != student:
        student, options = budget.student, {}
        distill['loss'].update(ground_truth='supervised', teacher_pixels=0.3)
    distill['training'] = _training(student, options, budget, budget.steps)
    recipe: dict[str, Any] = {'name': label, 'seed': seed, 'data': data, 'distill': distill}
    if distill['loss']['signal'] != 'ground_truth':
        recipe['teacher'] = {
            'network': TEACHER,
            'checkpoint': str(teacher / 'distill' / 'checkpoint.pt'),
        }
    if variant.get('prune'):
        recipe['prune'] = {
            'ratio': 0.37,
            'steps': 2,
            'tune_steps': max(1, budget.steps // 2),
            'round_to': 1,
        }
    if variant.get('tune'):
        # As many steps, as gentle, as the pruned variants get between their prunings.
        training = {**distill['training'], 'peak_learning_rate': 1e-3 / 3}
        recipe['tune'] = {'training': training, 'loss': distill['loss']}
    return recipe


def _row(title: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    epes = [result['validation']['epe_px'] for result in results]
    bad3 = [result['validation']['bad3'] for result in results]
    return {
        'variant': title,
        'parameters': results[0]['parameters'],
        'macs_640x480': results[0]['macs_640x480'],
        'epe_px': epes,
        'epe_px_mean': statistics.mean(epes),
        'epe_px_spread': statistics.stdev(epes) if len(epes) > 1 else 0.0,
        'bad3_mean': statistics.mean(bad3),
        'bad3_spread': statistics.stdev(bad3) if len(bad3) > 1 else 0.0,
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table with what it was measured on, spread as standard deviation."""
    budget = report['budget']
    lines = [
        f'### {report["ablation"]}',
        '',
        f'A small-scale replication with {budget["student"]}: {budget["steps"]} steps of '
        f'{budget["batch_size"]} crops of {budget["crop_width"]}x{budget["crop_height"]}, '
        f'{budget["seeds"]} seeds, a teacher of {budget["teacher_steps"]} steps. '
        'Mean ± standard deviation over the seeds.',
        '',
        '| variant | parameters | GMAC | EPE px | bad-3 % |',
        '|---|---:|---:|---:|---:|',
    ]
    lines += [
        f'| {row["variant"]} | {row["parameters"]:,} | {row["macs_640x480"] / 1e9:.2f} '
        f'| {row["epe_px_mean"]:.2f} ± {row["epe_px_spread"]:.2f} '
        f'| {row["bad3_mean"]:.1f} ± {row["bad3_spread"]:.1f} |'
        for row in report['rows']
    ]
    return '\n'.join(lines) + '\n'


def _labelled(progress: Progress | None, label: str) -> Progress | None:
    if progress is None:
        return None
    report: Callable[..., None] = progress

    def labelled(stage: str, step: int, steps: int, text: str) -> None:
        report(f'{label} {stage}', step, steps, text)

    return labelled


def _slug(title: str) -> str:
    kept = ''.join(c if c.isalnum() else '_' for c in title.lower())
    return '_'.join(part for part in kept.split('_') if part)
