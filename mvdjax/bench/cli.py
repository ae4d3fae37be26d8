"""`mvdjax bench ...`: measurements. Each tool lives in its own module and imports what it measures only when run."""

import argparse

from mvdjax.subcommands import add_tools, run_tool

# Tool -> (module with add_arguments(parser) and run(args), one line of help, an example).
TOOLS = {
    'loader': (
        'mvdjax.bench.loader',
        'CPU time per clip of the data loaders, beside FFmpeg alone and a loader written as the published one',
        'mvdjax bench loader --peer=decord --output=loader.json',
    ),
    'checkpoint': (
        'mvdjax.bench.checkpoint',
        'what saving a checkpoint costs a run, in steps: waiting, in all, and in CPU time',
        'mvdjax bench checkpoint --output=checkpoint.json',
    ),
    'compile': (
        'mvdjax.bench.compile',
        'what compiling the step of a config costs, scanned and unrolled, and what the cache of executables saves',
        'mvdjax bench compile --output=compile.json',
    ),
    'swin': (
        'mvdjax.bench.swin',
        'a two-stream step of a Swin, forward and backward, beside the published backbone',
        'mvdjax bench swin --variant=T --clips=1 --images=8 --peer=../BEVT',
    ),
    'step': (
        'mvdjax.bench.step',
        "a training step of any recipe, without data: clips/s, share of the device's matrix rate, memory",
        'mvdjax bench step --config=configs/mvd/k400_vit_b_from_b_400.py --dtype=float32 --peer=../MVD',
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the tools as sub-commands."""
    add_tools(parser, TOOLS)


def run(args: argparse.Namespace) -> int:
    """Runs the chosen tool."""
    return run_tool(args, TOOLS)
