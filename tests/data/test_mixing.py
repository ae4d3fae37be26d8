"""Mixtures and streams side by side: exact shares, each source in its own order, the same for any workers and hosts."""

import dataclasses
import sys

import fakes
import numpy as np
import pytest
from fakes import joined, same

from mvdjax.data import order
from mvdjax.data.pipeline import BadFiles, Data, Stream, train_batches, train_streams
from mvdjax.errors import UserError

SIZES = {'a': 5, 'b': 24, 'c': 11}
WEIGHTS = {'a': 0.5, 'b': 0.3, 'c': 0.2}


@pytest.fixture(autouse=True)
def _fake_recipe(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mvdjax.data.recipes.fake', fakes)


@pytest.fixture
def mixture(tmp_path):
    """A maker of data sections with sources of SIZES files; lines are their numbers."""

    def make(names=('a', 'b', 'c'), sources=None, options=None, classes=None, **more):
        sections = {}
        for name in names:
            path = tmp_path / f'{name}.txt'
            path.write_text(''.join(f'{name}{i}.mp4 {i % 3}\n' for i in range(SIZES[name])))
            sections[name] = {'files': str(path), 'weight': WEIGHTS[name], **(sources or {}).get(name, {})}
            if classes and name in classes:
                file = tmp_path / f'{name}_classes.txt'
                file.write_text('\n'.join(classes[name]))
                sections[name]['class_file'] = str(file)
        return Data(recipe='fake', options=options or {}, mixture=sections, **more)

    return make


def batches(data, *, seed=0, batch=8, start_step=0, steps=5, bad=None, **where):
    return list(
        train_batches(
            data,
            data.read(),
            seed=seed,
            global_batch=batch,
            start_step=start_step,
            steps=steps,
            bad=bad or BadFiles(None),
            **where,
        )
    )


def sequences(data, found):
    """Name of a source -> the lines of its samples, in order."""
    files = data.read()
    numbers = np.concatenate([b['wide'][:, 0] for b in found])  # see `marked`
    lines = np.concatenate([b['line'] for b in found])
    return {part.name: lines[numbers == i].tolist() for i, part in enumerate(files.parts)}


@dataclasses.dataclass(frozen=True)
class Marked(Data):
    """Samples know which source they are of, by its name in the path."""

    def samples(self, files, seed, bad):
        made = super().samples(files, seed, bad)
        return dataclasses.replace(made, recipe=Marking())


class Marking:
    views = 1

    def __call__(self, record, rng):
        source = 'abc'.index(record.path.rpartition('/')[2][0])
        return {'line': np.int32(record.line), 'draw': rng.random(), 'wide': np.array([source])}


def marked(data):
    return Marked(**{f.name: getattr(data, f.name) for f in dataclasses.fields(data)})


@pytest.mark.parametrize('weights', [(0.7, 0.3), (1, 1, 1), (240_436, 168_913, 8), (0.1, 0.2, 0.3, 0.4), (1e-6, 1)])
def test_every_window_has_the_shares_and_every_part_is_walked_without_a_gap(weights):
    parts = order.shares(weights)
    assert sum(parts) == 1
    seen = [0] * len(weights)
    for number in range(40 * order.WINDOW):
        part, place = order.mixed(number, parts, seed=3)
        assert place == seen[part]
        seen[part] += 1
        if number % order.WINDOW == order.WINDOW - 1:
            for count, share in zip(seen, parts, strict=True):
                assert abs(count - share * (number + 1)) < 2


def test_shares_stay_exact_in_the_billions():
    parts = order.shares((0.7, 0.2, 0.1))
    places = [order.mixed(10**12 + i, parts, seed=0) for i in range(1000)]
    first = next(place for part, place in places if part == 0)
    assert abs(first - 7 * 10**11) < 256
    assert [p for part, p in places if part == 0] == list(range(first, first + sum(part == 0 for part, _ in places)))


def test_neighbouring_windows_and_seeds_interleave_differently():
    parts = order.shares((1, 1))
    windows = {
        tuple(order.mixed(w * order.WINDOW + i, parts, seed)[0] for i in range(32)) for w in range(3) for seed in (0, 1)
    }
    assert len(windows) == 6


def test_each_source_is_walked_in_epochs_of_its_own_whatever_it_is_mixed_with(mixture):
    whole, pair = marked(mixture()), marked(mixture(names=('b', 'a')))
    found = sequences(whole, batches(whole, steps=40))
    for name, lines in found.items():
        size = SIZES[name]
        epochs = [lines[i : i + size] for i in range(0, len(lines) - size + 1, size)]
        assert len(epochs) >= 3
        assert all(sorted(epoch) == list(range(1, size + 1)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    share = {name: len(lines) / 320 for name, lines in found.items()}
    assert share == pytest.approx(WEIGHTS, abs=0.02)
    assert [part.name for part in pair.read().parts] == ['a', 'b']  # by name, wherever the config came from
    other = batches(pair, steps=20)
    lines = np.concatenate([b['line'] for b in other])
    source = np.concatenate([b['wide'][:, 0] for b in other])
    for name in 'ab':
        mine = lines[source == 'abc'.index(name)].tolist()
        assert mine == found[name][: len(mine)]


def streams_of(mixture, workers=0, threads=2):
    video = mixture(workers=workers, threads=threads)
    image, files = fakes.echo(48, threads=threads)
    return {'video': Stream(video, video.read(), 8), 'image': Stream(image, files, 16)}


def run_streams(streams, start_step=0, steps=6, **where):
    return list(train_streams(streams, seed=5, start_step=start_step, steps=steps, bad=BadFiles(None), **where))


def test_a_mixture_is_the_same_with_any_number_of_hosts_threads_and_workers_and_after_a_resume(mixture):
    expected = batches(mixture(threads=1), steps=5)  # one epoch: 40 files in batches of 8
    for processes in (1, 2, 4):
        where = [{'parts': (p,), 'of': processes} for p in range(processes)]
        same(joined([batches(mixture(threads=4), **w) for w in where]), expected)
        same(joined([batches(mixture(threads=4), start_step=2, **w) for w in where]), expected[2:])
    same(batches(mixture(workers=4, threads=1), start_step=1), expected[1:])


def test_two_streams_are_the_same_with_any_number_of_hosts_threads_and_workers_and_after_a_resume(mixture):
    expected = run_streams(streams_of(mixture, threads=1))
    assert [{n: len(part['line']) for n, part in b.items()} for b in expected] == [{'video': 8, 'image': 16}] * 6
    image = np.concatenate([b['image']['line'] for b in expected])
    assert sorted(image[:48]) == sorted(image[48:]) == list(range(48))  # epochs of its own
    for processes in (1, 2, 4):
        where = [{'parts': (p,), 'of': processes} for p in range(processes)]
        same(joined([run_streams(streams_of(mixture, threads=4), **w) for w in where]), expected)
        same(joined([run_streams(streams_of(mixture), start_step=3, **w) for w in where]), expected[3:])
    same(run_streams(streams_of(mixture, workers=1), start_step=4), expected[4:])


def test_a_stream_does_not_notice_the_others(mixture):
    streams = streams_of(mixture)
    both = run_streams(streams, steps=2)
    alone = run_streams({'image': streams['image']}, steps=2)
    same([{'image': b['image']} for b in both], alone)
    twice = run_streams({'one': streams['image'], 'two': streams['image']}, steps=1)[0]
    assert twice['one']['line'].tolist() != twice['two']['line'].tolist()


def test_a_broken_file_is_replaced_by_one_of_its_own_source(mixture):
    healthy = marked(mixture())
    expected = np.concatenate([b['wide'][:, 0] for b in batches(healthy, steps=10)])

    @dataclasses.dataclass(frozen=True)
    class Broken(Marked):
        def samples(self, files, seed, bad):
            class Breaking(Marking):
                def __call__(self, record, rng):
                    if record.path.endswith(('a1.mp4', 'c7.mp4')):
                        raise fakes.DecodeError(record.path, 'is broken')
                    return super().__call__(record, rng)

            return dataclasses.replace(super().samples(files, seed, bad), recipe=Breaking())

    broken = Broken(**{f.name: getattr(healthy, f.name) for f in dataclasses.fields(healthy)})
    found = batches(broken, steps=10)
    np.testing.assert_array_equal(np.concatenate([b['wide'][:, 0] for b in found]), expected)
    assert sum(b['substituted'].sum() for b in found) > 5


def labels_of(data, steps=10):
    return {int(label) for b in batches(data, steps=steps) for label in b['label']}


LABELLED = {'labels': True}
PETS, CARS = ('cat', 'dog', 'eel'), ('audi', 'bmw', 'colt')


def test_labels_of_sources_with_the_same_classes_stay_as_they_are(mixture):
    data = mixture(options=LABELLED, labels='same', classes=dict.fromkeys('abc', PETS))
    assert data.read().class_names == PETS
    assert labels_of(data) == {0, 1, 2}
    numbers = mixture(options=LABELLED, labels='same', sources={n: {'num_classes': 3} for n in 'abc'})
    assert numbers.read().class_names == ()


def test_joined_labels_follow_each_other(mixture):
    data = mixture(options=LABELLED, labels='joined', classes={'a': PETS, 'c': CARS}, sources={'b': {'num_classes': 4}})
    files = data.read()
    assert files.class_names == (*PETS, 'b 0', 'b 1', 'b 2', 'b 3', *CARS)
    assert [{r.label for r in files.records[p.start : p.stop]} for p in files.parts] == [
        {0, 1, 2},
        {3, 4, 5},
        {7, 8, 9},
    ]
    assert labels_of(data) == {0, 1, 2, 3, 4, 5, 7, 8, 9}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, "labels: say in data.labels whether .* 'same' .* 'joined'"),
        ({'labels': 'smae'}, "data.labels must be one of same, joined or None, not 'smae'; did you mean 'same'"),
        ({'labels': 'same'}, 'data.mixture.a does not say what its classes are: give it a class_file, or num_classes'),
        ({'labels': 'joined', 'classes': {'a': PETS}}, 'data.mixture.b does not say'),
        (
            {'labels': 'same', 'classes': {'a': PETS, 'b': CARS, 'c': PETS}},
            "class 0 is 'audi' in b and 'cat' in a: .* 'joined'",
        ),
        ({'labels': 'same', 'classes': {'a': PETS, 'b': (*PETS, 'fox'), 'c': PETS}}, 'b has 4 classes, a has 3'),
        (
            {'labels': 'same', 'classes': {'a': PETS, 'b': PETS}, 'sources': {'c': {'num_classes': 3}}},
            'only one of c and a names its classes',
        ),
        ({'sources': {'b': {'options': {'width': 2}}}, 'options': {}}, r'wide is uint8 \([12],\) in one and'),
        ({'sources': {'b': {'options': {'views': 2}}}}, r'make \[1, 2\] views of a file'),
        ({'sources': {'b': {'weight': 0.0}}}, r'weight of .*b\.txt .* at least'),
        ({'sources': {'b': {'weigth': 0.1}}}, "data.mixture.b has no key 'weigth'; did you mean 'weight'"),
        ({'files': 'list.txt'}, 'data has a mixture and files beside it'),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(mixture, options, message):
    with pytest.raises(UserError, match=message):
        labels_of(mixture(**{'options': LABELLED, **options}))


def test_a_list_in_place_of_a_source_is_refused_by_name():
    with pytest.raises(UserError, match=r"config\.data\.mixture\.a must be a section of keys, not 'x\.txt'"):
        Data(recipe='fake', options={}, mixture={'a': 'x.txt'}).read()


def test_a_section_without_a_list_and_labels_without_a_mixture_are_refused():
    with pytest.raises(UserError, match=r'names no list of files: set data\.files, or data\.mixture'):
        Data(recipe='fake', options={}).read()
    with pytest.raises(UserError, match=r"data\.labels is 'same', which says something of a mixture only"):
        Data(recipe='fake', options={}, files='list.txt', labels='same').read()
