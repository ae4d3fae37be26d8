"""`mvdjax data ...`: the data tools."""

import argparse

from mvdjax.data import demo

EXAMPLE = """example:
  mvdjax data demo --output=quickstart/data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the tools as sub-commands."""
    parser.epilog = EXAMPLE
    tools = parser.add_subparsers(dest='tool', metavar='TOOL', required=True)
    text = 'write the built-in demo data set: real encoded videos and images, with lists and class names'
    tool = tools.add_parser(
        'demo',
        help=text,
        description=text[0].upper() + text[1:] + '.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_arguments(tool)
    tool.add_argument('--debug', action='store_true', default=argparse.SUPPRESS, help='show the traceback of an error')


def run(args: argparse.Namespace) -> int:
    """Runs the chosen tool."""
    return {'demo': demo.run}[args.tool](args)
