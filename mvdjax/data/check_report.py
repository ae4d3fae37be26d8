"""What `mvdjax data check` concludes from the facts of all files: counts, hashes, duplicates, leaks. Pure functions."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from mvdjax.data.check_list import CheckedList
from mvdjax.data.examine import Facts
from mvdjax.data.schema import Record

Found = Mapping[str, Facts]  # path -> what is known of the file


def bad_files(records: Sequence[Record], found: Found) -> list[dict[str, Any]]:
    """{'line', 'path', 'problem'} of every record whose file cannot be used."""
    return [
        {'line': r.line, 'path': r.path, 'problem': found[r.path].problem} for r in records if found[r.path].problem
    ]


def odd_files(records: Sequence[Record], found: Found) -> list[dict[str, Any]]:
    """{'line', 'path', 'note'} of everything to know about files that can be used."""
    return [
        {'line': record.line, 'path': record.path, 'note': note}
        for record in records
        if not found[record.path].problem
        for note in found[record.path].notes
    ]


def short_files(records: Sequence[Record], found: Found, frames: int) -> list[dict[str, Any]]:
    """{'line', 'path', 'frames'} of the usable files with fewer frames than these."""
    return [
        {'line': record.line, 'path': record.path, 'frames': found[record.path].frames}
        for record in records
        if not found[record.path].problem and found[record.path].frames < frames
    ]


def hashes(records: Sequence[Record], found: Found) -> dict[str, str]:
    """Two SHA-256 of a list's data, neither of which depends on where the files lie or what they are called.

    Every record is a line `<sha256 of the file's bytes> <label>` and a newline, with 'unreadable' for a file that is
    not there. 'content' is the hash of the sorted lines: equal for the same videos with the same labels. 'order' is
    that of the lines as listed: equal data also come in the same order in training.
    """
    lines = [f'{found[r.path].sha256 or "unreadable"} {r.label}\n' for r in records]
    return {
        'content': hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest(),
        'order': hashlib.sha256(''.join(lines).encode()).hexdigest(),
    }


def classes(checked: CheckedList, found: Found, num_classes: int | None) -> list[dict[str, Any]]:
    """{'label', 'name', 'files', 'good'} of every class, those without files too; [] of a list without labels."""
    listed = Counter(r.label for r in checked.files.records)
    good = Counter(r.label for r in checked.files.records if not found[r.path].problem)
    names = checked.files.class_names
    count = max(num_classes or 0, len(names), max(listed, default=-1) + 1)
    return [
        {'label': i, 'name': names[i] if i < len(names) else '', 'files': listed[i], 'good': good[i]}
        for i in range(count)
    ]


def totals(paths: Iterable[str], found: Found) -> dict[str, Any]:
    """Counts and spreads over the usable files among `paths`, each taken once."""
    good = [found[path] for path in dict.fromkeys(paths) if not found[path].problem]
    count: dict[str, Counter[str]] = defaultdict(Counter)
    for facts in good:
        count['codecs'][facts.codec] += 1
        count['containers'][facts.container] += 1
        count['pixels'][facts.pixels] += 1
        count['rotations'][str(facts.rotation)] += 1
        count['sizes'][f'{facts.width}x{facts.height}'] += 1
        count['rates'][f'{facts.fps:.4g}'] += 1
    return {
        'files': len(good),
        'bytes': sum(facts.bytes for facts in good),
        'seconds': round(sum(facts.seconds for facts in good), 3),
        'frames': sum(facts.frames for facts in good),
        'variable_rate': sum(facts.variable for facts in good),
        'frames_spread': _spread([facts.frames for facts in good]),
        'seconds_spread': _spread([facts.seconds for facts in good]),
        'short_side_spread': _spread([min(facts.width, facts.height) for facts in good]),
        **{name: dict(counter.most_common()) for name, counter in sorted(count.items())},
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {'min': min(values), 'median': round(statistics.median(values), 3), 'max': max(values)}


def _keys(record: Record, found: Found) -> dict[str, str]:
    """What a file is recognised by: {kind: value}, the surest first."""
    facts = found[record.path]
    return {
        'path': record.path,
        **({'bytes': facts.sha256} if facts.sha256 else {}),
        **({'pictures': facts.pictures} if facts.pictures else {}),
    }


def duplicates(records: Sequence[Record], found: Found) -> list[dict[str, Any]]:
    """{'same', 'lines', 'paths', 'labels'} of every group of lines that show the same.

    'same' is what the first two of a group share: 'path', 'bytes' (other paths) or 'pictures' (other bytes, such as
    another container).
    """
    groups: list[list[Record]] = []
    place: dict[tuple[str, str], int] = {}
    for record in records:
        keys = list(_keys(record, found).items())
        at = next((place[key] for key in keys if key in place), len(groups))
        if at == len(groups):
            groups.append([])
        groups[at].append(record)
        for key in keys:
            place.setdefault(key, at)
    return [
        {
            'same': _shared(group[0], group[1], found),
            'lines': [r.line for r in group],
            'paths': [r.path for r in group],
            'labels': [r.label for r in group],
        }
        for group in groups
        if len(group) > 1
    ]


def _shared(a: Record, b: Record, found: Found) -> str:
    first, second = _keys(a, found), _keys(b, found)
    return next((kind for kind, value in first.items() if second.get(kind) == value), 'pictures')


def leaks(lists: Sequence[CheckedList], found: Found) -> list[dict[str, Any]]:
    """{'same', 'lists', 'lines', 'paths'} of every line of a list whose file is in a later list too."""
    leaked = []
    for (i, first), (j, second) in combinations(enumerate(lists), 2):
        known: dict[tuple[str, str], Record] = {}
        for record in second.files.records:
            for key in _keys(record, found).items():
                known.setdefault(key, record)
        for record in first.files.records:
            for kind, value in _keys(record, found).items():
                other = known.get((kind, value))
                if other is not None:
                    leaked.append(
                        {
                            'same': kind,
                            'lists': [i, j],
                            'lines': [record.line, other.line],
                            'paths': [record.path, other.path],
                        }
                    )
                    break
    return leaked
