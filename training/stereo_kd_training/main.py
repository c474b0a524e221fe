# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The `stereo-kd-train` command: generate pairs, train a student, export it, judge it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stereo_kd_ros.commands.console import image_size, readable_errors_of
from stereo_kd_training.adapt.command import adapt_command
from stereo_kd_training.bars import console, stage_bars
from stereo_kd_training.calibrate import calibrate_command
from stereo_kd_training.curves import curves_command
from stereo_kd_training.data_ablation import ablate_data_command
from stereo_kd_training.evaluate import evaluate_command
from stereo_kd_training.joined import join_command
from stereo_kd_training.label_folder import label_command
from stereo_kd_training.prune_file import prune_command
from stereo_kd_training.quantize import quantize_command
from stereo_kd_training.sheets import sheet_command
from stereo_kd_training.threads import Threads, use_threads
from stereo_kd_training.zoo import zoo_command

if TYPE_CHECKING:
    from stereo_kd_training.networks import StereoNetwork

app = typer.Typer(
    help='Turn a strong teacher into a tiny stereo student: data, training, export, judgement.',
    no_args_is_help=True,
    context_settings={'help_option_names': ['-h', '--help']},
    pretty_exceptions_show_locals=False,
)

readable_errors = readable_errors_of(
    'stereo_kd_ros', 'stereo_kd_training', 'pydantic_core', 'yaml'
)


@app.command()
@readable_errors
def generate(
    out: Annotated[Path, typer.Option('--out', '-o', help='Folder of the pool.')],
    pairs: Annotated[int, typer.Option(min=1, help='How many stereo pairs.')] = 8000,
    height: Annotated[int, typer.Option(min=64, help='Pixels.')] = 288,
    width: Annotated[int, typer.Option(min=64, help='Pixels.')] = 576,
    seed: Annotated[int, typer.Option(help='The same seed gives the same pairs.')] = 0,
    max_disparity: Annotated[
        float, typer.Option(min=4, help='Pixels; no pair has a larger one.')
    ] = 192.0,
    workers: Annotated[int, typer.Option(min=1, help='Processes.')] = 2,
    textures: Annotated[
        Path | None, typer.Option(help='Texture bank; synthetic textures alone without it.')
    ] = None,
    scenes: Annotated[
        str,
        typer.Option(
            help='layered, rooms (rooms, corridors, streets in 3-D), streets or indoors alone, '
            'or mixed.'
        ),
    ] = 'mixed',
    cameras: Annotated[
        bool, typer.Option(help='With noise, blur, exposure and a rectification of real rigs.')
    ] = True,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help='Leave out streets, mirrors, weak (texture) or thin (things); repeatable.'
        ),
    ] = None,
) -> None:
    """Render a pool of procedural stereo pairs with exact truth (resumable)."""
    from stereo_kd_training.datasets.procedural import generate_pool

    generate_pool(
        out,
        pairs,
        height=height,
        width=width,
        seed=seed,
        workers=workers,
        textures=textures,
        max_disparity_px=max_disparity,
        scenes=scenes,
        cameras=cameras,
        without=without or (),
    )


@app.command()
@readable_errors
def train(
    run: Annotated[Path, typer.Argument(help='Run folder; resumed when it holds a checkpoint.')],
    pool: Annotated[list[Path], typer.Option(help='Pool(s) made by generate; repeatable.')],
    config: Annotated[
        Path | None, typer.Option('--config', '-c', help='YAML of the run; defaults without.')
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help='Overrides the YAML.')] = None,
    holdout: Annotated[int, typer.Option(min=1, help='Last pairs of the pool, to measure.')] = 48,
    threads: Threads = 2,
) -> None:
    """Train a student on pools of pairs; stop it whenever you like, start it again later."""
    from stereo_kd_training.datasets.procedural import PairPool
    from stereo_kd_training.recipe import check_settings, read_settings
    from stereo_kd_training.train import (
        ConcatenatedPairs,
        Trainer,
        TrainingConfig,
    )

    use_threads(threads)
    fields = read_settings(config) if config else {}
    if steps is not None:
        fields['steps'] = steps
    training = check_settings(TrainingConfig, fields, str(config or 'options'))
    pairs = ConcatenatedPairs([PairPool(folder) for folder in pool])
    learn, measure = pairs.split(holdout)
    with stage_bars() as report:
        report(run.name, 0, training.steps, '')
        trainer = Trainer(
            training,
            run,
            learn,
            measure,
            progress=lambda step, text: report(run.name, step, training.steps, text),
        )
        metrics = trainer.run()
    console.print(json.dumps(metrics, indent=2))


@app.command()
@readable_errors
def export(
    run: Annotated[
        Path, typer.Argument(help='Run folder, checkpoint, or a shipped .onnx to write anew.')
    ],
    out: Annotated[Path, typer.Option('--out', '-o', help='The .onnx file to write.')],
    name: Annotated[str | None, typer.Option(help='Model name; the file stem without.')] = None,
    version: Annotated[
        str | None, typer.Option(help='Model version; 0.1.0 without, or that of the file.')
    ] = None,
    licence: Annotated[str, typer.Option(help='SPDX licence of the weights.')] = 'Apache-2.0',
    pool: Annotated[
        list[Path] | None, typer.Option(help='Pools it was trained on, for the manifest.')
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(
            help='ONNX file whose weights it began with: its data, teacher and pruning count too. '
            'Of a file: another of its kind, to be mixed with by --share.'
        ),
    ] = None,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help='How far from the weights of --after (0) to its own (1).'),
    ] = 1.0,
    temperature: Annotated[
        float,
        typer.Option(help='Divides the logits: above 1 softens the distribution of disparities.'),
    ] = 1.0,
    cell_px: Annotated[
        int | None,
        typer.Option(min=2, max=6, help='Cells of another size: finer (3) is better and slower.'),
    ] = None,
    cell_height_px: Annotated[
        int | None,
        typer.Option(
            min=2, max=8, help='Their height, if not their width: 6 or 8 is much faster.'
        ),
    ] = None,
    refined_by: Annotated[
        Path | None,
        typer.Option(help='Of a file: another of its family, whose refinement it takes over.'),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(min=1, help='Of a file: how often its refinement is asked; 2 is better.'),
    ] = None,
    spread: Annotated[
        int | None,
        typer.Option(
            min=0,
            help='Of a file: after so many passes, each time, the answers of sure cells spread to '
            'those round them that look alike; 0 for never.',
        ),
    ] = None,
    half_weights: Annotated[
        bool, typer.Option(help='Store them in half precision: half the file, the same speed.')
    ] = False,
    teacher: Annotated[str | None, typer.Option(help='Who taught it, for the manifest.')] = None,
    metrics: Annotated[
        Path | None, typer.Option(help='JSON of the evaluate command, for the manifest.')
    ] = None,
    metrics_of: Annotated[
        str | None, typer.Option(help='Method of that JSON; the model name without.')
    ] = None,
    fixed_size: Annotated[
        str | None, typer.Option(help='WIDTHxHEIGHT of a static variant, for TensorRT.')
    ] = None,
) -> None:
    """Write the ONNX file that the robot runs; parity with PyTorch or no file."""
    from stereo_kd_ros.model import read_manifest
    from stereo_kd_training.complexity import complexity
    from stereo_kd_training.datasets.procedural import PairPool
    from stereo_kd_training.evaluation_report import manifest_metrics, read_report
    from stereo_kd_training.export import (
        build_manifest,
        earlier_sources,
        export_again,
        export_network,
        training_sources,
    )
    from stereo_kd_training.networks.kestrel import with_cells
    from stereo_kd_training.prune import pruned_since
    from stereo_kd_training.train import TrainingError, load_network, read_checkpoint

    size = None
    if fixed_size:
        width, height = image_size(fixed_size)
        size = (height, width)
    if cell_height_px is not None and cell_px is None:
        raise TrainingError('--cell-height-px needs --cell-px, their width')
    if run.suffix == '.onnx':
        if share < 1 and after is None:
            raise TrainingError(f'--share needs --after, the file that {run} is mixed with')
        parities = export_again(
            run,
            out,
            size,
            temperature=temperature,
            cells=None if cell_px is None else (cell_px, cell_height_px),
            mixed_with=after if share < 1 else None,
            share=share,
            mix=_part_of_the_way,
            version=version,
            refined_by=refined_by,
            passes=passes,
            spread=spread,
            half_weights=half_weights,
        )
        _print_parities(parities, out)
        return
    if any(of is not None for of in (refined_by, passes, spread)):
        raise TrainingError(
            '--refined-by, --passes and --spread are for files; export the run first'
        )
    network = load_network(run)
    state = read_checkpoint(run / 'checkpoint.pt' if run.is_dir() else run)
    if share < 1:
        if after is None:
            raise TrainingError('--share needs --after, the file whose weights the run began with')
        network = _part_of_the_way(after, network, share)
    extra: dict[str, Any] = {'steps': state.get('step'), 'share': share}
    if cell_px is not None:
        network = with_cells(network, cell_px, cell_height_px)
    if temperature != 1.0:
        network.temper(temperature)
        extra['temperature'] = temperature
    training_data = training_sources([PairPool(folder).manifest for folder in pool or []])
    history: dict[str, Any] = {'teacher': teacher}
    if after is not None:
        training_data += earlier_sources(after, training_data)
        earlier = read_manifest(after)
        history = {'teacher': teacher or earlier.teacher, 'pruning': list(earlier.pruning)}
        if pruned_since(network, earlier.configuration):
            history['pruning'].append(
                {
                    'parameters': network.parameter_count(),
                    'macs_640x480': complexity(network).macs,
                }
            )
    training = dict(state.get('training') or {})
    if training.get('initial_weights'):
        # Which file, not where it lay on this machine.
        training['initial_weights'] = Path(training['initial_weights']).name
    figures = {}
    if metrics:
        figures = manifest_metrics(read_report(metrics), metrics_of or name or out.stem)
    manifest = build_manifest(
        network,
        name or out.stem,
        version=version or '0.1.0',
        licence=licence,
        training_data=training_data,
        **history,
        metrics=figures,
        macs_640x480=complexity(network).macs,
        extra={**extra, 'training': training},
    )
    parities = export_network(network, out, manifest, fixed_size=size, half_weights=half_weights)
    _print_parities(parities, out)


def _part_of_the_way(after: Path, trained: StereoNetwork, share: float) -> StereoNetwork:
    """Weights between those of a file and those of a network, which training made of them."""
    from stereo_kd_training.networks import build
    from stereo_kd_training.train import between, load_weights

    start = build(trained.configuration)
    load_weights(start, after)
    return between(start, trained, share)


def _print_parities(parities: Iterable[Any], out: Path) -> None:
    for parity in parities:
        console.print(
            f'{parity.width}x{parity.height}: largest difference '
            f'{parity.max_difference_px:.2e} px, confidence {parity.max_confidence_difference:.1e}'
        )
    console.print(f'wrote {out} ({out.stat().st_size / 1e6:.2f} MB)')


@app.command()
@readable_errors
def networks(
    as_json: Annotated[bool, typer.Option('--json', help='For programs.')] = False,
    write: Annotated[
        Path | None,
        typer.Option(help='Measure all of them (minutes) and write the table of this page anew.'),
    ] = None,
    latency: Annotated[
        bool, typer.Option(help='With --write: also export the students and time them.')
    ] = True,
    weights: Annotated[
        Path | None, typer.Option(help='With --write: folder of official weights to check.')
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help='With --weights: benchmark folder with a set kitti2015.')
    ] = None,
) -> None:
    """List every network: parameters, multiply-accumulates at 640x480, source."""
    from rich.table import Table

    from stereo_kd_training.complexity import networks_table

    if write is not None:
        import torch

        from stereo_kd_training import show

        torch.set_num_threads(1)
        with console.status('') as status:
            report = show.measure(latency=latency, heard=status.update)
            if weights is not None and pairs is not None:
                report['official'] = show.official_errors(weights, pairs, heard=status.update)
        text = show.as_markdown(report)
        show.write_into(write, text)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    rows = networks_table()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table('name', 'parameters', 'GMAC at 640x480', 'source')
    for row in rows:
        table.add_row(
            row['name'],
            f'{row["parameters"]:,}',
            f'{row["macs_640x480"] / 1e9:.2f}',
            row['source'],
        )
    console.print(table)


@app.command()
@readable_errors
def run(
    recipe: Annotated[Path, typer.Argument(help='YAML of an experiment; see training/recipes.')],
    out: Annotated[Path, typer.Option('--out', '-o', help='Run folder; continued when begun.')],
    budget: Annotated[
        float | None,
        typer.Option(help='Shorten: a share of all steps below 1, or their total number.'),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option('--set', help='KEY=VALUE, as in distill.training.batch_size=2; repeatable.'),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option('--dry-run', help='Say what would be done, and how long it takes.')
    ] = False,
    threads: Threads = 2,
) -> None:
    """Teach, cache, distill, prune, tune, export, evaluate; resumable at any point."""
    from stereo_kd_training.recipe import read_recipe
    from stereo_kd_training.stages import RecipeRun, plan

    use_threads(threads)
    experiment = read_recipe(recipe, change or ())
    if budget is not None:
        experiment = experiment.with_budget(budget)
    if dry_run:
        console.print('\n'.join(plan(experiment)), markup=False, highlight=False)
        return
    with stage_bars() as report:
        summary = RecipeRun(experiment, out, report).run()
    console.print_json(json.dumps(summary))


@app.command()
@readable_errors
def ablate(
    name: Annotated[
        str, typer.Argument(help='signal, loss, modules, compact, distil_prune, or all of them.')
    ],
    out: Annotated[Path, typer.Option('--out', '-o', help='Folder; continued when begun.')],
    pool: Annotated[Path | None, typer.Option(help='Pool made by generate.')] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help='Instead of --pool: take the data and the teacher of this recipe.'),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help='Of every student.')] = 400,
    tune_steps: Annotated[
        int, typer.Option(min=1, help='That distil_prune adds, with prunings or without.')
    ] = 200,
    teacher_steps: Annotated[int, typer.Option(min=1, help='Of the one teacher.')] = 1200,
    seeds: Annotated[int, typer.Option(min=1, help='Runs per variant.')] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help='Crops per step.')] = 4,
    crop: Annotated[str, typer.Option(help='WIDTHxHEIGHT of a crop.')] = '256x128',
    max_disparity: Annotated[int, typer.Option(min=16, help='Of every network, in px.')] = 128,
    student: Annotated[
        str, typer.Option(help='Instead of dtpnet where its own parts are not compared.')
    ] = 'dtpnet',
    holdout: Annotated[int, typer.Option(min=1, help='Last pairs of the pool, to measure.')] = 48,
    threads: Threads = 2,
) -> None:
    """Repeat tables of the papers at any budget, over several seeds; resumable."""
    from stereo_kd_training.ablation import (
        ABLATIONS,
        AblationError,
        Budget,
        as_markdown,
        run_ablation,
    )
    from stereo_kd_training.recipe import read_recipe

    use_threads(threads)
    width, height = image_size(crop)
    if (pool is None) == (recipe is None):
        raise AblationError('give either --pool, or --recipe for its data and its teacher')
    teacher = None
    if recipe is None:
        data = {
            'train': [{'pool': str(pool), 'last': -holdout}],
            'validation': [{'pool': str(pool), 'first': -holdout}],
        }
    else:
        given = read_recipe(recipe).model_dump(mode='json', include={'data', 'teacher', 'teach'})
        data = given['data']
        # One that the recipe would train first is no teacher yet.
        teacher = None if given['teach'] else given['teacher']
    budget = Budget(
        steps=steps,
        tune_steps=tune_steps,
        teacher_steps=teacher_steps,
        batch_size=batch_size,
        crop_height=height,
        crop_width=width,
        max_disparity_px=max_disparity,
        seeds=seeds,
        student=student,
    )
    for table in ABLATIONS if name == 'all' else [name]:
        with stage_bars() as report:
            result = run_ablation(table, out, data, budget, report, teacher)
        console.print(as_markdown(result), markup=False, highlight=False, soft_wrap=True)


app.command('ablate-data')(readable_errors(ablate_data_command))
app.command('evaluate')(evaluate_command)
app.command('quantize')(readable_errors(quantize_command))
app.command('adapt')(readable_errors(adapt_command))
app.command('zoo')(readable_errors(zoo_command))
app.command('calibrate')(readable_errors(calibrate_command))
app.command('curves')(readable_errors(curves_command))
app.command('join')(readable_errors(join_command))
app.command('label')(readable_errors(label_command))
app.command('prune')(readable_errors(prune_command))
app.command('sheet')(readable_errors(sheet_command))


def main() -> None:
    """Entry point of `stereo-kd-train`."""
    try:
        app()
    except SystemExit as end:
        if not end.code:
            _leave_process_group()
        raise


def _leave_process_group() -> None:
    """Of several processes that ended well: one that goes while gloo still runs may be aborted."""
    distributed = sys.modules.get('torch.distributed')
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == '__main__':
    main()
