# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The `stereo-kd` command. Each sub-command lives in a file of its own.

Only typer and rich are imported here and at the top of those files: `--help` answers at once and
works where ROS is not installed.
"""

from __future__ import annotations

from typing import Annotated

import typer

import stereo_kd_ros
from stereo_kd_ros.commands.bench import bench
from stereo_kd_ros.commands.demo import demo
from stereo_kd_ros.commands.doctor import doctor
from stereo_kd_ros.commands.evaluate import evaluate
from stereo_kd_ros.commands.infer import infer
from stereo_kd_ros.commands.make_bag import make_bag
from stereo_kd_ros.commands.models import models
from stereo_kd_ros.commands.play import play
from stereo_kd_ros.commands.run import run

app = typer.Typer(
    name='stereo-kd',
    help='Real-time stereo depth: on two pictures, on a bag, on live topics.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode='rich',
    context_settings={'help_option_names': ['-h', '--help']},
)
app.command()(infer)
app.command('make-bag')(make_bag)
app.command()(play)
app.command(context_settings={'allow_extra_args': True, 'ignore_unknown_options': True})(run)
app.command()(demo)
app.command()(evaluate)
app.command()(models)
app.command()(bench)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(stereo_kd_ros.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option('--version', callback=_print_version, is_eager=True, help='Say which.'),
    ] = False,
) -> None:
    """Real-time stereo depth: on two pictures, on a bag, on live topics."""


def main() -> None:
    """Entry point of `stereo-kd`."""
    app()


if __name__ == '__main__':
    main()
