"""`mvdjax convert`: PyTorch checkpoints of the published models to this project's, and back."""

import argparse
import dataclasses
import functools
import json
import os
import re
from typing import Any

import numpy as np

from mvdjax import checkpoints
from mvdjax import config as configs
from mvdjax.console import say
from mvdjax.convert import dalle, families, files, hub, models, rules, writing
from mvdjax.convert.architecture import Architecture, Given
from mvdjax.convert.families import AnyFamily, Family
from mvdjax.convert.layouts import Shape
from mvdjax.convert.models import Model
from mvdjax.convert.writing import Leaf
from mvdjax.errors import UserError
from mvdjax.models.video_swin import VideoSwin
from mvdjax.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT
from mvdjax.tasks.base import describe

MASKS = {True: {'kind': 'random', 'ratio': 0.75}, False: {'kind': 'tube', 'ratio': 0.9}}  # published; by family.image


def _task_config(family: AnyFamily, model: Model, normalised_pixels: bool) -> dict[str, Any]:
    """Task name and section for the meta, as far as a file of weights decides them."""
    if not isinstance(model, Architecture):
        return model.task_config()
    assert isinstance(family, Family)
    backbone = dict(model.backbone)
    if model.num_classes is not None:
        return {'task_name': 'classify', 'task': {'model': backbone, 'num_classes': model.num_classes}}
    mask = MASKS[family.image]
    if 'pixels' in model.decoders:
        decoder = {k: v for k, v in model.decoders['pixels'].items() if k != 'out_dim'}
        target = ('mae' if family.image else 'videomae') + ('' if normalised_pixels else '_raw')
        return {'task_name': 'mae', 'task': {'encoder': backbone, 'decoder': decoder, 'mask': mask, 'target': target}}
    if model.decoders:  # the teachers themselves are in other files
        teachers = {name: {'decoder': dict(section)} for name, section in model.decoders.items()}
        return {'task_name': 'mvd', 'task': {'student': backbone, 'teachers': teachers, 'mask': mask}}
    return {'task_name': 'encoder', 'task': {'encoder': backbone}}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A PyTorch file, understood but not read yet.

    Attributes:
      family, model: what it is.
      expected: shapes of our leaves.
      mapping: how they lie there.
      tables: fixed position tables that the file may hold.
      left: tensors that are left behind.
    """

    family: AnyFamily
    model: Model
    expected: dict[str, Shape]
    mapping: list[rules.Rule]
    tables: dict[str, np.ndarray]
    left: list[str]

    def read(self, source: files.Source) -> tuple[dict[str, Leaf], str]:
        """(leaves by path, a table of every tensor); making the leaves empties the source."""
        tables = rules.check_tables(self.tables, source)
        leaves = {}
        for rule in self.mapping:
            shape = self.expected[rule.ours]
            leaves[rule.ours] = Leaf(shape, functools.partial(rules.to_ours, rule, source, shape))
        return leaves, rules.format_table(self.mapping, tables, self.left, self.expected)


def understand(
    source: files.Source,
    family: AnyFamily | None,
    given: Given,
    ignore: tuple[str, ...] = (),
    average: bool = False,
) -> Reading:
    """Finds out what a file holds, from names and shapes alone.

    Args:
      source: the file; its tensors get the family's names.
      family: of the file, or None to recognise it.
      given: what tensors do not say.
      ignore: regexes of tensors that may be left behind.
      average: take the moving average that the file holds beside the weights.

    Raises:
      UserError: the tensors are not those of a model of the family.
    """
    family = family or families.recognise(source.shapes)
    model = models.read(family, source, given, average)
    expected, mapping = model.shapes(), models.make_rules(family, model)
    tables = models.make_tables(family, model)
    left = rules.check_source(mapping, tables, source.shapes, expected, (*ignore, *family.drops))
    return Reading(family, model, expected, mapping, tables, left)


def _names(args: argparse.Namespace, source: files.Source, model: Model) -> list[str]:
    """Class names of a classifier."""
    names = hub.class_names(source.hub_config) if model.num_classes is not None else []
    if args.classes:
        try:
            with open(args.classes, encoding='utf-8') as file:
                names = [line.strip() for line in file if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f'{args.classes} is no UTF-8 text ({error})') from error
    if names and len(names) != model.num_classes:
        raise UserError(f'there are {len(names)} class names for {model.num_classes or "no"} classes')
    return names


def import_checkpoint(args: argparse.Namespace) -> str:
    """PyTorch -> mvdjax. Returns what to print last."""
    if args.destination.endswith(('.safetensors', *files.TORCH_SUFFIXES)):
        raise UserError(f'{args.source} and {args.destination} are both PyTorch files: DST is the name of a workdir')
    source = files.open_source(args.source, args.key)
    given = Given(args.heads, args.decoder_heads, args.input, window=args.window)
    asked = families.get(args.family) if args.family else None
    reading = understand(source, asked, given, tuple(args.ignore), args.ema)
    family, model = reading.family, reading.model
    if args.decoder_heads and isinstance(model, Architecture) and not model.decoders:
        raise UserError(f'--decoder-heads: {args.source} has no decoder')
    names = _names(args, source, model)
    config = _task_config(family, model, bool(source.hub_config.get('norm_pix_loss', not source.hub_config)))
    if args.config:
        config = _checked_config(args.config, args.overrides, model)
    elif args.overrides:
        raise UserError(f'{args.overrides[0]} changes a config: give it, --config=FILE')
    leaves, table = reading.read(source)
    say(f'{args.source} is of the family {family.name} ({family.text})')
    say(model.text())
    for note in source.notes:
        say(f'note: {note}')
    say(table)
    licence = args.licence or family.licence
    meta = {
        'schema_version': checkpoints.SCHEMA_VERSION,
        'step': 0,
        'config': config,
        'class_names': names,
        'input_shape': list(model.input_shape),
        'backbone': describe(model.module()),
        'family': family.name,
        'sources': [{'checkpoint': args.source, 'sha256': source.sha256(), 'licence': licence, 'sources': []}],
        'licence': licence,
    }
    models.of_checkpoint(reading.expected, meta)  # what reads the checkpoint must understand it
    writing.save(args.destination, leaves, json.loads(json.dumps(meta)))
    return f'wrote {args.destination}: a checkpoint for init.checkpoint, a teacher, evaluate and selfcheck'


def _checked_config(file: str, overrides: list[str], model: Model) -> dict[str, Any]:
    """A config whose model is the converted one."""
    config = configs.load(file, overrides)
    task = configs.make_task(config)
    mine, theirs = _facts(model.module()), _facts(task.backbone())
    mine['num_classes'], theirs['num_classes'] = model.num_classes, getattr(task, 'num_classes', None)
    if isinstance(model, Architecture):
        section = configs.section(config, 'task')
        mine['decoders'] = sorted(model.decoders)
        theirs['decoders'] = ['pixels'] if 'decoder' in section else sorted(section.get('teachers', {}))
    wrong = [f'{key} {mine[key]!r} (config: {theirs.get(key)!r})' for key in mine if mine[key] != theirs.get(key)]
    if wrong:
        raise UserError(f'the weights are of another model than {file}: {", ".join(wrong)}')
    return config.to_dict()


def _facts(backbone: ViT | VideoSwin) -> dict[str, Any]:
    """What two backbones must have in common."""
    sizes = ('depths', 'window') if isinstance(backbone, VideoSwin) else ('depth',)
    return describe(backbone) | {name: getattr(backbone, name) for name in ('width', 'heads', 'mlp_ratio', *sizes)}


def export_checkpoint(args: argparse.Namespace) -> str:
    """mvdjax -> PyTorch. Returns what to print last."""
    meta = checkpoints.read_meta(args.source)
    leaves = checkpoints.StoredParams(args.source, args.ema)
    left = [name for name in leaves if any(re.search(pattern, name) for pattern in args.ignore)]
    shapes = {name: shape for name, shape in leaves.shapes.items() if name not in left}
    model = models.of_checkpoint(shapes, meta)
    family = families.get(args.family) if args.family else models.family_of(model)
    models.check_family(family, model)
    files.check_name(args.destination, bool(family.hub_class))
    if args.transformers == 5 and not family.hub_class:
        raise UserError(f'--transformers=5 is for the hf- families, and {family.name} is none')
    mapping, tables = models.make_rules(family, model), models.make_tables(family, model)
    config, preprocessor = None, None
    if isinstance(family, Family) and isinstance(model, Architecture) and family.hub_class:
        raw = str(meta['config']['task'].get('target', '')).endswith('_raw')
        config = hub.write(family, model, meta['class_names'], not raw)
        preprocessor = hub.preprocessor(model)
    backbone = model.module()
    say(f'{args.source} as {family.name} ({family.text})')
    if not family.hub_class and (tuple(backbone.mean), tuple(backbone.std)) != (IMAGENET_MEAN, IMAGENET_STD):
        statistics = f'mean {backbone.mean}, std {backbone.std}'
        say(f'note: pixels are normalised with {statistics}, which such a file does not say')
    tensors = rules.to_theirs(mapping, tables, leaves, shapes)
    say(rules.format_table(mapping, dict.fromkeys(tables, 0.0), left, shapes))
    if isinstance(family, Family) and args.transformers == 5:
        tensors = {family.modernised(name): array for name, array in tensors.items()}
    tensors = models.file_contents(family, model, tensors)
    files.write(args.destination, tensors, config, preprocessor, family.container)
    return f'wrote {args.destination}; licence of the weights: {meta["licence"]}'


IMPORT_ONLY = ('input', 'heads', 'decoder_heads', 'window', 'key', 'config', 'overrides', 'classes', 'licence')


def _check_options(args: argparse.Namespace, exports: bool) -> None:
    """Refuses options that only the other direction reads."""
    idle = [name for name in (IMPORT_ONLY if exports else ()) if getattr(args, name)]
    if not exports and args.transformers != 4:
        idle.append('transformers')
    if idle:
        names = ', '.join(f'--{name.replace("_", "-")}' for name in idle)
        direction = 'from PyTorch' if exports else 'to PyTorch'
        raise UserError(f'{names}: only for converting {direction}, and {args.source} goes the other way')


def _convert_dalle(args: argparse.Namespace, exports: bool) -> str:
    """The tokenizer, either way: it has neither tokens nor heads nor classes. Returns what to print last."""
    idle = [name for name in ('input', 'heads', 'decoder_heads', 'config', 'classes', 'ignore') if getattr(args, name)]
    if idle:
        names = ', '.join(f'--{name.replace("_", "-")}' for name in idle)
        raise UserError(f'{names}: not for the family {dalle.NAME}, whose file says all there is to know')
    if exports:
        return dalle.export_encoder(args.source, args.destination)
    return dalle.import_encoder(args.source, args.destination, key=args.key, licence=args.licence)


def _is_ours(path: str) -> bool:
    try:
        checkpoints.find_step_folder(path)
    except UserError:
        return False
    return True


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f'{text!r} is not a regular expression ({error})') from None
    return text


def _size(text: str) -> tuple[int, int, int]:
    try:
        frames, height, width = (_positive(side) for side in text.lower().split('x'))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f'{text!r} is not FRAMESxHEIGHTxWIDTH, like 16x224x224') from None
    return frames, height, width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax convert`."""
    parser.add_argument('source', metavar='SRC', help='PyTorch file or folder, or a workdir or checkpoint of mvdjax')
    parser.add_argument('destination', metavar='DST', help='workdir to make; or .pth, .safetensors, or an hf- folder')
    parser.add_argument('--family', default='', help='what SRC or DST is in PyTorch (default: recognised)')
    parser.add_argument('--input', type=_size, metavar='TxHxW', help='frames and pixels of an input, like 16x224x224')
    parser.add_argument(
        '--window', type=_size, metavar='TxHxW', help='of a Swin, in tokens, if its tables do not say it'
    )
    parser.add_argument('--heads', type=_positive, help='of the encoder, if its width is of no published model')
    parser.add_argument('--decoder-heads', type=_positive, help='of the decoders, likewise')
    parser.add_argument(
        '--ignore',
        action='append',
        default=[],
        type=_regex,
        metavar='REGEX',
        help='tensors (or leaves) to leave behind',
    )
    parser.add_argument('--key', default='', help='key of the state dict in a file that holds several')
    parser.add_argument(
        '--config', metavar='FILE[:ARG]', help='config that travels with the weights (predict needs it)'
    )
    parser.add_argument('--classes', metavar='FILE', help='class names, one per line')
    parser.add_argument('--licence', default='', help='of the weights, to be stored with them')
    parser.add_argument('--ema', action='store_true', help='take the moving average of SRC')
    parser.add_argument(
        '--transformers',
        type=int,
        choices=(4, 5),
        default=4,
        help='names of the hf- families: 4, as in the files on the hub (default; from_pretrained of both reads them), '
        'or 5, as the modules of transformers 5 have them (for load_state_dict)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace DST')
    texts = {**{family.name: family.text for family in families.FAMILIES.values()}, dalle.NAME: dalle.TEXT}
    kinds = '\n'.join(f'  {name:<22} {text}' for name, text in texts.items())
    parser.epilog = f"""families:
{kinds}

example:
  mvdjax convert mae_pretrain_vit_base.pth runs/mae_in1k_vit_b
  mvdjax convert finetuned.pth runs/k400_vit_b --family=mvd-finetuned --config=configs/finetune/k400_vit_b.py
  mvdjax convert runs/mvd_k400_vit_b_from_b_400 student.pth
  mvdjax convert runs/videomae_k400_vit_b videomae-base/ --family=hf-videomae
  mvdjax convert encoder.pkl runs/dalle"""


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax convert`."""
    if not os.path.exists(args.source):
        raise UserError(f'{args.source} does not exist')
    exports = _is_ours(args.source)
    _check_options(args, exports)
    files.check_target(args.source, args.destination, args.overwrite)
    if dalle.is_ours(args.source, args.family) if exports else dalle.is_theirs(args.source, args.family):
        say(_convert_dalle(args, exports))
        return 0
    say(export_checkpoint(args) if exports else import_checkpoint(args))
    return 0
