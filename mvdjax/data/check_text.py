"""What `mvdjax data check` prints: check.json in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = 10  # problems of a kind that the screen gets
ROWS = 4  # codecs, sizes... of each kind that the screen gets

Result = Mapping[str, Any]


def errors(result: Result) -> dict[str, list[str]]:
    """What must not stay as it is, by list: a sentence each, for lines, files and leaks, in this order."""
    found: dict[str, list[str]] = {}
    for number, one in enumerate(result['lists']):
        path = one['path']
        lines = [f'{path}:{bad["line"]}: {bad["problem"]}' for bad in one['bad_lines']]
        lines += [f'{path}:{bad["line"]}: {bad["path"]} {bad["problem"]}' for bad in one['bad_files']]
        for leak in result['leaks']:
            if leak['lists'][0] == number:
                other = result['lists'][leak['lists'][1]]['path']
                lines.append(f'{path}:{leak["lines"][0]}: {_same(leak)} in {other}:{leak["lines"][1]}')
        found[path] = lines
    return found


def _same(leak: Mapping[str, Any]) -> str:
    first, second = leak['paths']
    return {
        'path': f'{first} is also',
        'bytes': f'{first} is byte for byte {second}',
        'pictures': f'{first} shows the same pictures as {second}',
    }[leak['same']]


def warnings(result: Result) -> dict[str, list[str]]:
    """What may stay as it is, by list: a sentence each, for files, duplicates and classes."""
    found: dict[str, list[str]] = {}
    for one in result['lists']:
        path = one['path']
        lines = [f'{path}:{odd["line"]}: {odd["path"]} {odd["note"]}' for odd in one['odd_files']]
        if short := one['short_files']:
            least = min(file['frames'] for file in short)
            lines.append(
                f'{path}: {len(short)} of {one["good"]} videos have fewer than the {result["frames"]} frames of a '
                f'clip, the shortest {least}: their clips repeat frames'
            )
        for group in one['duplicates']:
            labels = sorted(set(group['labels']))
            different = f', with different labels: {", ".join(map(str, labels))}' if len(labels) > 1 else ''
            where = ', '.join(str(line) for line in group['lines'][1:])
            shared = {'path': 'is listed again', 'bytes': 'has the same bytes as', 'pictures': 'shows the same as'}
            line = 'line' if len(group['lines']) == 2 else 'lines'
            lines.append(
                f'{path}:{group["lines"][0]}: {group["paths"][0]} {shared[group["same"]]} '
                f'{"in " if group["same"] == "path" else ""}{line} {where}{different}'
            )
        empty = [c for c in one['classes'] if not c['good']]
        if empty and len(empty) < len(one['classes']):
            names = ', '.join(_class(c) for c in empty[:SHOWN]) + (', ...' if len(empty) > SHOWN else '')
            lines.append(f'{path}: {len(empty)} of {len(one["classes"])} classes have no usable file: {names}')
        found[path] = lines
    return found


def _class(entry: Mapping[str, Any]) -> str:
    return f'{entry["label"]} {entry["name"]}'.strip()


def problems(result: Result) -> Iterator[str]:
    """All of it, a line each."""
    for kind, found in (('error', errors(result)), ('warning', warnings(result))):
        for lines in found.values():
            for line in lines:
                yield f'{kind}: {line}'


def summary(result: Result, problem_file: str) -> Iterator[str]:
    """The screen."""
    wrong, odd = errors(result), warnings(result)
    for one in result['lists']:
        path, total = one['path'], one['totals']
        for kind, lines in (('error', wrong[path]), ('warning', odd[path])):
            yield from (f'{kind}: {line}' for line in lines[:SHOWN])
            if len(lines) > SHOWN:
                yield f'{kind}: ... and {len(lines) - SHOWN} more in {problem_file}'
        missing = [bad for bad in one['bad_files'] if bad['problem'] == 'does not exist']
        if one['files'] and len(missing) == one['files']:
            yield f'{path}: none of its files exists: paths start from {one["root"]}, give another --root'
        what = 'images' if one['image'] else 'videos'
        yield f'{path}: {one["good"]} of {one["files"]} {what} are good, {len(one["bad_lines"])} lines are wrong'
        if one['good']:
            yield from (f'  {line}' for line in _describe(one, total))
        yield f'  content {one["hashes"]["content"][:16]}, order {one["hashes"]["order"][:16]}'
        changed = one['kept'] < one['files'] or one['bad_lines']
        relative = f', to be used with data.root={one["root"]}' if one['relative'] else ''
        yield f'  {"clean list" if changed else "list"} of {one["kept"]} files: {one["clean"]}{relative}'


def _describe(one: Mapping[str, Any], total: Mapping[str, Any]) -> Iterator[str]:
    size = f'{total["bytes"] / 1e9:.2f} GB' if total['bytes'] > 1e8 else f'{total["bytes"] / 1e6:.1f} MB'
    short = total['short_side_spread']
    side = f'short side {short["min"]:g} to {short["max"]:g} pixels (median {short["median"]:g})'
    if one['image']:
        yield f'{size}; {side}; {_counts(total["codecs"])}'
    else:
        frames, seconds = total['frames_spread'], total['seconds_spread']
        yield (
            f'{_hours(total["seconds"])}, {size}; {seconds["min"]:.3g} to {seconds["max"]:.3g} s '
            f'(median {seconds["median"]:.3g}), {frames["min"]:g} to {frames["max"]:g} frames '
            f'(median {frames["median"]:g})'
        )
        yield f'{side}; codecs {_counts(total["codecs"])}; frames a second {_counts(total["rates"])}'
        turned = sum(count for angle, count in total['rotations'].items() if angle != '0')
        odd = [f'{turned} turned by a rotation flag'] * bool(turned)
        odd += [f'{total["variable_rate"]} with a variable frame rate'] * bool(total['variable_rate'])
        if odd:
            yield ', '.join(odd)
    counts = [c['good'] for c in one['classes']]
    if len(counts) > 1:
        yield f'{len(counts)} classes of {min(counts)} to {max(counts)} files'


def _counts(counter: Mapping[str, int]) -> str:
    rows = [f'{name or "?"} ({count})' for name, count in list(counter.items())[:ROWS]]
    return ', '.join(rows) + (f' and {len(counter) - ROWS} others' if len(counter) > ROWS else '')


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'
