"""Commands with tools below them: `mvdjax data TOOL`, `mvdjax bench TOOL`."""

import argparse
import importlib
from collections.abc import Mapping
from typing import Any

# Tool -> (module with add_arguments(parser) and run(args), one line of help, an example).
Tools = Mapping[str, tuple[str, str, str]]


class _Tool(argparse.ArgumentParser):
    """A parser whose module is imported only when it is the one to be used."""

    module = ''

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As its base class, after the module has added its arguments."""
        if self.module:
            importlib.import_module(self.module).add_arguments(self)
            self.module = ''
        return super().parse_known_args(args, namespace)


def add_tools(parser: argparse.ArgumentParser, tools: Tools) -> None:
    """Adds the tools as sub-commands; the module of the chosen one is imported when it is parsed."""
    parser.epilog = '\n  '.join(['example:', *(example for _, _, example in tools.values())])
    subparsers = parser.add_subparsers(dest='tool', metavar='TOOL', required=True, parser_class=_Tool)
    for name, (module, text, example) in tools.items():
        tool = subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + '.',
            epilog=f'example:\n  {example}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        tool.module = module
        tool.add_argument(
            '--debug', action='store_true', default=argparse.SUPPRESS, help='show the traceback of an error'
        )


def run_tool(args: argparse.Namespace, tools: Tools) -> int:
    """Runs the chosen tool."""
    return importlib.import_module(tools[args.tool][0]).run(args)
