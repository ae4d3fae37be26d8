"""A plan in words, and rows of the table in Markdown."""

from collections.abc import Iterator, Sequence
from typing import Any

from mvdjax.analysis.plan_compile import GIB
from mvdjax.analysis.plan_result import CAVEAT, FORMULA

KINDS = {
    'parameters': 'parameters, float32',
    'optimizer': 'optimizer, both moments',
    'average': 'moving average',
    'teachers': 'teachers',
    'batch': 'batch, uint8',
    'layout': "padding of the device's layouts",
    'temporaries': 'activations, gradients, copies',
    'gradients': 'gradients',
    'copies': '16-bit copies of the weights',
    'activations': 'activations',
    'code': 'program',
}


def describe(plan: dict[str, Any]) -> str:
    """All of a plan, in lines."""
    return '\n'.join([*_machine(plan), '', *_memory(plan), '', *_flops(plan), *_collectives(plan), '', *_time(plan)])


def _machine(plan: dict[str, Any]) -> Iterator[str]:
    device, batch = plan['device'], plan['batch']
    yield f'{plan["config"]} {" ".join(plan["overrides"])}'.strip()
    figures = ''
    if device:
        low = f'{device["bfloat16"] / 1e12:.0f}' if device['bfloat16'] else 'no'
        figures = (
            f': {plan["devices"]} x {device["name"]}, each {low} TFLOP/s bfloat16, {device["float32"] / 1e12:.0f} '
            f'float32, {device["memory"] / GIB:.1f} GiB at {device["bandwidth"] / 1e9:.0f} GB/s, '
            f'{device["link"] / 1e9:.0f} GB/s to others'
        )
    yield f'on {plan["topology"]}{figures}'
    compiler = plan['compiler']
    yield (
        f'compiled in {compiler["seconds"]:.0f} s by {compiler["version"]}'
        if compiler
        else 'by formula: there is no compiler for this device here'
    )
    mesh = ' '.join(f'{axis}={size}' for axis, size in plan['mesh'].items())
    views = f' x {batch["views"]} views' if batch['views'] > 1 else ''
    yield (
        f'mesh {mesh}; batch {batch["global"]}{views} = {batch["clips_per_device"]:g} clips per device x '
        f'{batch["shards"]} batch shards x {batch["accumulate"]} accumulation'
    )
    teachers = plan['teacher_parameters']
    yield f'{plan["parameters"] / 1e6:.2f} M parameters' + (f', {teachers / 1e6:.2f} M of teachers' if teachers else '')


def _memory(plan: dict[str, Any]) -> Iterator[str]:
    memory = plan['memory']
    yield f'memory per device by {memory["from"]}, GiB'
    if memory['refusal']:
        yield f'  {memory["refusal"]}'
    else:
        yield from (f'  {KINDS[k]:<34}{size / GIB:8.2f}' for k, size in memory['kinds'].items() if size)
    limit = memory['limit']
    verdict = {True: 'fits', False: 'does not fit', None: 'the size of the memory is not known'}[memory['fits']]
    yield f'  {"all":<34}{memory["needed"] / GIB:8.2f}' + (f' of {limit / GIB:.2f}' if limit else '') + f': {verdict}'
    largest = plan.get('largest')
    if largest:
        yield f'largest batch that fits: {largest["clips_per_device"]} clips per device ({largest["how"]})'
    elif 'largest' in plan and limit:
        yield 'not even the smallest batch fits'


def _flops(plan: dict[str, Any]) -> Iterator[str]:
    flops = plan['flops']
    model = sum(flops['model_per_clip'].values())
    parts = ', '.join(f'{name} {value / 1e9:.1f}' for name, value in flops['model_per_clip'].items())
    yield f'GFLOP per clip: {model / 1e9:.1f} of the model by formula ({parts})'
    yield f'  executed, with what remat computes again: {flops["executed_per_clip"] / 1e9:.1f}'
    if flops['counted_once_per_clip'] is not None:
        own = f"  the compiler's own count: {flops['counted_once_per_clip'] / 1e9:.1f}"
        yield own + ' (it takes the body of a loop once, also where all layers are one loop; --unrolled has none)'


def _collectives(plan: dict[str, Any]) -> Iterator[str]:
    if plan['collectives'] is None:
        return
    yield 'collectives per step and device' + ('' if plan['collectives'] else ': none')
    for row in plan['collectives']:
        yield (
            f'  {row["kind"]} over {row["group"]}: {row["count"]:.0f} of {row["bytes"] / 1e6:.1f} MB in all, '
            f'{row["wire"] / 1e6:.1f} MB sent'
        )
    if plan['loops_of_unknown_length']:
        yield f'  ({plan["loops_of_unknown_length"]} loops end when the data says so; they are counted once)'


def _time(plan: dict[str, Any]) -> Iterator[str]:
    time = plan['time']
    if time is None:
        yield 'no step time: the peak rates of this device are not known'
        return
    memory = time['seconds_memory']
    # By formula there is nothing but matrix products at full rate: a bound, not a forecast.
    by, most = (' by formula at least', 'at most ') if time['from'] == 'formula' else ('', '')
    parts = f'{time["seconds_compute"] * 1e3:.4g} arithmetic alone, '
    parts += '' if memory is None else f'{memory * 1e3:.4g} memory alone, '
    parts += f'{time["seconds_work"] * 1e3:.4g} the slower of the two, {time["seconds_links"] * 1e3:.3g} links'
    yield f'step{by} {time["seconds_step"] * 1e3:.4g} ms ({parts}), {time["clips_per_second"]:.0f} clips/s, ' + (
        f'MFU {most}{100 * time["mfu"]:.0f} %'
    )
    if time['hours'] is not None:
        yield f'{time["steps"]} steps: {time["hours"]:.1f} hours, {time["device_hours"]:.0f} device-hours'
    else:
        yield 'hours: give the length of the training list, --records=N'
    yield f'{FORMULA}.'
    yield f'{CAVEAT}.'


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines."""
    lines = [
        '| recipe | clips per device x accumulation | changes | GiB | GFLOP/clip | ms/step | MFU | hours | by |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    return lines + [_row(row) for row in rows]


def _row(row: dict[str, Any]) -> str:
    name = row['config'].removeprefix('configs/').removesuffix('.py')
    if 'refused' in row:
        return f'| `{name}` | | {row["refused"]} | | | | | | formula |'
    memory, batch, time = row['memory'], row['batch'], row['time']
    changes = [o.removeprefix('--config.') for o in row['overrides']]
    remat = sorted({c.rpartition('remat=')[2] for c in changes if 'remat=' in c})
    short = [c for c in changes if 'remat=' not in c] + [f'remat={policy}' for policy in remat]
    least, most = ('> ', '< ') if time and time['from'] == 'formula' else ('', '')
    size = f'{memory["needed"] / GIB:.1f} of {memory["limit"] / GIB:.1f}' + ('' if memory['fits'] else ': too much')
    return (
        f'| `{name}` | {batch["clips_per_device"]:g} x {batch["accumulate"]} | {", ".join(short) or "none"} | {size} | '
        f'{sum(row["flops"]["model_per_clip"].values()) / 1e9:.0f} | '
        + (
            f'{least}{time["seconds_step"] * 1e3:.0f} | {most}{100 * time["mfu"]:.0f} % | {least}{time["hours"]:.1f} | '
            if time and memory['fits']
            else '| | | '
        )
        + f'{memory["from"]}{" (-1)" if row.get("compiled", {}).get("effort") == -1 else ""} |'
    )
