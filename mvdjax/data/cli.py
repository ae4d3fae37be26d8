"""`mvdjax data ...`: the data tools. Each lives in the module it runs."""

import argparse
import importlib
from typing import Any

# Tool -> (module with add_arguments(parser) and run(args), one line of help, an example).
TOOLS = {
    'demo': (
        'mvdjax.data.demo',
        'write the built-in demo data set: real encoded videos and images, with lists and class names',
        'mvdjax data demo --output=quickstart/data',
    ),
    'init': (
        'mvdjax.data.init',
        'make lists and class names of a folder of your own: its sub-folders are the classes',
        'mvdjax data init my_videos --val=0.1',
    ),
    'check': (
        'mvdjax.data.check',
        'decode every file of a list once and say what is wrong: lines, files, duplicates, leaks',
        'mvdjax data check lists/train.txt lists/val.txt --class_file=lists/classes.txt --output=check',
    ),
    'pack': (
        'mvdjax.data.pack',
        'put the videos of a list into ArrayRecord shards, as they are or quicker to decode',
        'mvdjax data pack lists/train.txt --profile=gop16 --output=packs/train',
    ),
    'stats': (
        'mvdjax.analysis.data_stats',
        'what `mvdjax data check` found, as plots and one HTML page',
        'mvdjax data stats check --output=stats',
    ),
    'show': (
        'mvdjax.analysis.data_show',
        'pictures of exactly what the model will see for a config: clips, masks, erased boxes, labels',
        'mvdjax data show --config=configs/mvd/demo_nano.py --output=shown --step=100',
    ),
}


class _Tool(argparse.ArgumentParser):
    """A parser whose module is imported only when it is the one to be used."""

    module = ''

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As its base class, after the module has added its arguments."""
        if self.module:
            importlib.import_module(self.module).add_arguments(self)
            self.module = ''
        return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the tools as sub-commands."""
    parser.epilog = '\n  '.join(['example:', *(example for _, _, example in TOOLS.values())])
    tools = parser.add_subparsers(dest='tool', metavar='TOOL', required=True, parser_class=_Tool)
    for name, (module, text, example) in TOOLS.items():
        tool = tools.add_parser(
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


def run(args: argparse.Namespace) -> int:
    """Runs the chosen tool."""
    return importlib.import_module(TOOLS[args.tool][0]).run(args)
