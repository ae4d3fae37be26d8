"""Commands with tools below them: `mvdjax data TOOL`, `mvdjax bench TOOL`."""

import argparse
import importlib
from collections.abc import Mapping

# Tool -> (module with add_arguments(parser) and run(args), one line of help, an example).
Tools = Mapping[str, tuple[str, str, str]]


def add_tools(parser: argparse.ArgumentParser, tools: Tools) -> None:
    """Adds the tools as sub-commands; imports their modules, which therefore import what is heavy in `run` only."""
    parser.epilog = '\n  '.join(['example:', *(example for _, _, example in tools.values())])
    subparsers = parser.add_subparsers(dest='tool', metavar='TOOL', required=True)
    for name, (module, text, example) in tools.items():
        tool = subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + '.',
            epilog=f'example:\n  {example}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        importlib.import_module(module).add_arguments(tool)
        tool.add_argument(
            '--debug', action='store_true', default=argparse.SUPPRESS, help='show the traceback of an error'
        )


def run_tool(args: argparse.Namespace, tools: Tools) -> int:
    """Runs the chosen tool."""
    return importlib.import_module(tools[args.tool][0]).run(args)
