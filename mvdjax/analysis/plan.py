"""`mvdjax plan`: what a training would take on a machine, compiled for it ahead of time or by formula."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from mvdjax import hardware
from mvdjax.analysis import plan_estimate, plan_table, plan_text, plan_topology
from mvdjax.analysis.plan_compile import GIB
from mvdjax.analysis.plan_proposal import proposals
from mvdjax.analysis.plan_result import make_plan, result
from mvdjax.analysis.plan_topology import Topology
from mvdjax.console import say
from mvdjax.errors import UserError

EXAMPLE = """examples:
  mvdjax plan --config=configs/mvd/k400_vit_b_from_b_400.py --topology=v5e:16x16   # compile for a TPU slice (extra tpu)
  mvdjax plan --config=configs/mvd/demo_nano.py:debug --topology=local:8           # for 8 devices of this machine
  mvdjax plan --config=configs/mvd/k400_vit_l_from_l_400.py --topology=H100:8      # by formula
  mvdjax plan --config=configs/mvd/k400_vit_b_from_b_400.py --devices=2 --memory=24G --device=RTX4090   # what to change
  mvdjax plan --table=docs/scaling.md                                              # every published recipe

exit codes: 0 it fits (or the memory is not known), 1 it does not, or the plan failed; 2 bad usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax plan`."""
    parser.add_argument(
        '--config', metavar='FILE[:ARG]', help='the recipe; change a value with --config.section.key=value'
    )
    parser.add_argument('--topology', metavar='NAME', help=f'what to plan for: {plan_topology.FORMS}')
    parser.add_argument(
        '--devices', type=int, metavar='N', help='propose changes for N devices, with --memory or --device'
    )
    parser.add_argument('--memory', metavar='SIZE', help="memory of each, as '24G' (GiB); without it that of --device")
    parser.add_argument('--device', metavar='NAME', help='which, as H100 or RTX4090, for step times')
    parser.add_argument('--records', type=int, metavar='N', help='length of the training list, if it is not at hand')
    parser.add_argument(
        '--largest', action='store_true', help='look for the largest batch that fits; compiles several times'
    )
    parser.add_argument(
        '--unrolled', action='store_true', help="no loop over layers, for the compiler's own FLOPs; slow"
    )
    parser.add_argument(
        '--effort',
        type=float,
        metavar='X',
        help="of a TPU's compiler to make code fast, -1 (least) to 0 (in full, slow); default: "
        f'{plan_topology.TPU_EFFORT}, with the same figures wherever both were run',
    )
    parser.add_argument('--output', metavar='FILE', help='write the plan as JSON')
    parser.add_argument('--table', metavar='FILE', help='write the table of all published recipes as Markdown')
    parser.add_argument('--only', default='', metavar='REGEX', help='with --table: rows ("CONFIG TOPOLOGY") to compile')
    parser.add_argument(
        '--no-compile', action='store_true', help='with --table: rows compiled before, the rest by formula'
    )
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax plan`."""
    if args.effort is not None and not -1 <= args.effort <= 0:
        raise UserError(f'--effort must be from -1 to 0, not {args.effort:g}')
    if args.table:
        _write_table(args)
        return 0
    if not args.config:
        raise UserError('say what to plan: --config=FILE, or --table=FILE for all published recipes')
    if bool(args.topology) == bool(args.devices):
        raise UserError('give a --topology to plan for, or --devices (with --memory or --device) for a proposal')
    plan = _propose(args) if args.devices else _plan(args)
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(plan, indent=1) + '\n')
    if plan['memory']['fits'] is not False:
        return 0
    say(_too_large(plan))
    return 1


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    topology = plan_topology.find(args.topology, args.effort)
    plan = make_plan(
        args.config,
        args.overrides,
        topology,
        records=args.records,
        largest=args.largest or topology.devices is None,
        unrolled=args.unrolled,
    )
    say(plan_text.describe(plan))
    return plan


def _too_large(plan: dict[str, Any]) -> str:
    memory = plan['memory']
    limit = f'{memory["limit"] / GIB:.2f}' if memory['limit'] else 'less'
    return (
        f'does not fit: a step takes {memory["needed"] / GIB:.2f} GiB of {limit} GiB per device; '
        f'mvdjax plan --config={plan["config"]} --devices={plan["devices"]} '
        f'--memory={(memory["limit"] or 0) / GIB:.1f}G says what to change'
    )


def parse_memory(text: str) -> float:
    """Bytes of '24G' or '24GiB' (2^30), '80GB' (10^9), or a plain number of GiB.

    Raises:
      UserError: anything else.
    """
    found = re.fullmatch(r'([\d.]+)\s*(GB|GiB|G|)', text, re.IGNORECASE)
    if not found or not found[1].replace('.', '', 1).isdigit() or not float(found[1]):
        raise UserError(f"--memory={text} is no size: write it as '24G' (GiB) or '80GB'")
    return float(found[1]) * (1e9 if found[2].upper() == 'GB' else GIB)


def _propose(args: argparse.Namespace) -> dict[str, Any]:
    if args.devices < 1:
        raise UserError(f'--devices must be at least 1, not {args.devices}')
    device = hardware.find(args.device) if args.device else None
    if args.device and device is None:
        raise UserError(f'--device={args.device} is not known: {", ".join(d.name for d in hardware.DEVICES)}')
    if not args.memory and device is None:
        raise UserError('a proposal needs to know the memory of a device: --memory=24G, or --device=NAME')
    memory = parse_memory(args.memory) if args.memory else device.memory if device else 0.0
    topology = Topology(f'{args.device or "device"}:{args.devices}', args.devices, device, None)
    limit = plan_estimate.USABLE * memory
    found = proposals(args.config, args.overrides, topology, limit, args.records)
    best = found[0]
    overrides = [*args.overrides, *best.overrides]
    plan = {'config': args.config, 'overrides': overrides, **result(best.step, topology, best.estimate, None)}
    plan['memory'] |= {'limit': limit, 'fits': True}
    plan['proposed'] = list(best.overrides)
    say(plan_text.describe(plan))
    kept = plan['batch']['global']
    say(f'\n{plan_estimate.USABLE:.0%} of {memory / GIB:.1f} GiB were planned for. The batch stays {kept}.')
    for other in found[1:]:
        seconds = f', {1e3 * other.seconds:.0f} ms a step' if device else ''
        say(f'also fits: {" ".join(other.overrides) or "no change"} ({other.estimate.needed / GIB:.1f} GiB{seconds})')
    say('\nadd to the command line:' if best.overrides else '\nnothing has to be changed')
    for override in best.overrides:
        say(f'  {override}')
    return plan


def _write_table(args: argparse.Namespace) -> None:
    cache = plan_table.Cache(str(Path(args.table).with_suffix('.json')))
    try:
        re.compile(args.only)
    except re.error as error:
        raise UserError(f'--only={args.only} is not a regular expression ({error})') from error
    text = plan_table.page(list(plan_table.rows(cache, args.only, not args.no_compile, args.effort)))
    Path(args.table).write_text(text)
    say(f'{args.table} is written')
