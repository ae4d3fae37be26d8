"""`mvdjax data ...`: the data tools."""

import argparse

from mvdjax.data import demo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the tools as sub-commands."""
    tools = parser.add_subparsers(dest='tool', metavar='TOOL', required=True)
    text = 'write the built-in demo data set: real encoded videos and images, with lists and class names'
    demo.add_arguments(tools.add_parser('demo', help=text, description=text[0].upper() + text[1:] + '.'))


def run(args: argparse.Namespace) -> int:
    """Runs the chosen tool."""
    return {'demo': demo.run}[args.tool](args)
