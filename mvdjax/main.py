"""The command line: `mvdjax COMMAND`, also `python -m mvdjax COMMAND`. Each command lives in the module it runs."""

import argparse
import importlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import logging as absl_logging

from mvdjax import __version__, processes
from mvdjax.errors import INTERRUPTED, TRY_AGAIN, Stopped, UserError

# Command -> (module with add_arguments(parser) and run(args), one line of help). Only the module asked for is imported.
COMMANDS = {
    'train': ('mvdjax.train', 'train any stage; resumes by itself when the workdir holds checkpoints'),
    'evaluate': ('mvdjax.evaluate', 'score a checkpoint with the multi-view test; writes results.json'),
    'predict': ('mvdjax.predict', 'top-5 classes, with names, of any video file'),
    'features': (
        'mvdjax.features',
        'what a trained encoder makes of videos: vectors or maps of tokens, as NumPy arrays',
    ),
    'convert': ('mvdjax.convert.command', 'PyTorch checkpoints of all published models to this project, and back'),
    'selfcheck': ('mvdjax.selfcheck', 'whether this machine gives the answers stored with a checkpoint'),
    'ckpt': ('mvdjax.ckpt.cli', 'list, verify and copy checkpoints'),
    'data': ('mvdjax.data.cli', 'data tools; `mvdjax data demo` writes the built-in demo data set'),
    'bench': ('mvdjax.bench.cli', 'measure this machine; `mvdjax bench loader` compares ways to read videos'),
    'plan': ('mvdjax.analysis.plan', 'what a recipe takes on a machine, without the machine: memory, step time, hours'),
    'report': ('mvdjax.analysis.report', 'curves and pictures of finished or running stages'),
}


# What devices say when those of another process do not answer: nothing that the run has done wrong.
LOST_TOUCH = re.compile(r'DEADLINE_EXCEEDED|UNAVAILABLE|ABORTED|CANCELLED|[Gg]loo|NCCL')


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only `command`, if given, gets its arguments (and its module imported)."""
    parser = argparse.ArgumentParser(
        prog='mvdjax',
        description='Masked video pretraining in JAX: teachers, distillation, fine-tuning, evaluation.',
        epilog='mvdjax COMMAND --help shows the arguments of a command with an example.',
    )
    parser.add_argument('--version', action='version', version=f'mvdjax {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + '.',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            importlib.import_module(module).add_arguments(sub)
        sub.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      0, 1 if it failed, 75 if a run was told to stop and can be started again, 130 after Ctrl-C. Bad usage exits with
      2 through argparse.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in arguments if a in COMMANDS), None)
    try:
        parser = make_parser(command)
    except KeyboardInterrupt:  # while modules are imported
        print('interrupted before anything was begun', file=sys.stderr)
        return INTERRUPTED
    args, rest = parser.parse_known_args(arguments)
    stray = [a for a in rest if not a.startswith('--config.')]
    if stray or (rest and not hasattr(args, 'config')):
        hint = '; an override is one word, --config.section.key=value' if len(stray) < len(rest) else ''
        parser.error(f'mvdjax {args.command} does not take {" ".join(stray or rest)}{hint}')
    args.overrides = rest
    if not args.debug:
        absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax's notes: what matters of them is raised, too
    try:
        try:
            code = importlib.import_module(COMMANDS[args.command][0]).run(args)
        except Stopped as stop:  # on all processes at once
            print(f'{processes.prefix()}{stop}', file=sys.stderr)
            code = stop.code
        processes.finish()
        return code
    except BaseException as error:
        text = _sentence(error)
        if text is not None:
            return _fail(args, text, INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
        if processes.count() > 1:
            processes.await_news()  # a step fails, too, when another process is gone: not this one's fault to explain
            traceback.print_exc()
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            if isinstance(error, RuntimeError) and LOST_TOUCH.search(str(error)):
                code = TRY_AGAIN
            processes.abandon(f'{type(error).__name__}: {error}', code)
        raise


def _sentence(error: BaseException) -> str | None:
    """What to tell the user of an error, or None of one that is a fault of the program."""
    if isinstance(error, UserError):
        return f'error: {error}'
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted; start the same command again to go on from what was saved'
    if isinstance(error, OSError):
        return f'error: {error.strerror or error} ({error.filename or "no file named"})'
    if isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(error):
        return (
            'error: the device is out of memory; lower run.global_batch, raise run.accumulate, or set remat=full '
            'in the model section of the config'
        )
    if isinstance(error, RuntimeError) and 'Unable to initialize backend' in str(error):
        return f'error: {error}. Unset JAX_PLATFORMS, or install the extra for this device (cuda, tpu)'
    return None


def _fail(args: argparse.Namespace, text: str, code: int) -> int:
    if args.debug:
        traceback.print_exc()
    text = ' '.join(text.split('\n'))
    print(f'{processes.prefix()}{text}', file=sys.stderr)
    processes.abandon(text, code)
    return code
