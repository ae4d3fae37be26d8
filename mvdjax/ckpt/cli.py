"""`mvdjax ckpt ...`: look at checkpoints, prove them, take them elsewhere. Each tool lives in its own module."""

import argparse

from mvdjax.subcommands import add_tools, run_tool

# Tool -> (module with add_arguments(parser) and run(args), one line of help, an example).
TOOLS = {
    'list': (
        'mvdjax.ckpt.listing',
        'the checkpoints of a workdir: sizes, dates, metrics, verified or not',
        'mvdjax ckpt list runs/videomae',
    ),
    'verify': (
        'mvdjax.ckpt.verifying',
        'read every file and every array of checkpoints and compare them with what was saved; status 1 if damaged',
        'mvdjax ckpt verify runs/videomae',
    ),
    'copy': (
        'mvdjax.ckpt.copying',
        'copy a workdir or one checkpoint elsewhere, also to and from object stores; compared before it shows there',
        'mvdjax ckpt copy runs/videomae/checkpoints/9000 gs://bucket/videomae',
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the tools as sub-commands."""
    add_tools(parser, TOOLS)


def run(args: argparse.Namespace) -> int:
    """Runs the chosen tool."""
    return run_tool(args, TOOLS)
