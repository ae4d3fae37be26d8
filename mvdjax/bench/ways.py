"""The ways to make a clip that `mvdjax bench loader` compares. Each function here is a factory for `measure`.

A factory gets the list and the number of clips per batch, and returns a function that makes batch i and says how many
clips it held. Sample n of every way comes from the same record and the same random generator: equal ways make equal
clips.
"""

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from typing import Any

import av
import numpy as np
import psutil

from mvdjax.bench import peer_decord
from mvdjax.bench.measure import Candidate, Cost, Make, serve
from mvdjax.data import pipeline, sampling, worker_settings
from mvdjax.data import workers as data_workers
from mvdjax.data.schema import FileList, Record
from mvdjax.errors import UserError


def _samples(files: FileList, i: int, batch: int) -> Iterator[tuple[Record, np.random.Generator]]:
    """The records of batch i, in list order round and round, each with the generator of its sample."""
    for number in range(i * batch, (i + 1) * batch):
        seed = np.random.SeedSequence([0, number, 0])
        yield files.records[number % len(files.records)], np.random.Generator(np.random.Philox(seed))


def ours(files: FileList, recipe: str, options: Mapping[str, Any], batch: int) -> Make:
    """Our loader on one thread: the recipe, and its samples stacked into a batch of uint8 clips."""
    worker_settings.tune()
    make = pipeline.make_recipe(recipe, options)

    def run(i: int) -> int:
        samples = [make(record, rng) for record, rng in _samples(files, i, batch)]
        stacked = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        return len(stacked['video']) * make.views

    return run


def decord(files: FileList, length: int, stride: int, sizes: tuple[int, int], batch: int, tuned: bool = False) -> Make:
    """The published loader's way, see `peer_decord`; `tuned` with our settings of memory and threads."""
    reader = peer_decord.video_reader()
    if tuned:
        worker_settings.tune()

    def run(i: int) -> int:
        drawn = _samples(files, i, batch)
        clips = [peer_decord.load_clip(reader, record.path, rng, length, stride, sizes) for record, rng in drawn]
        return len(peer_decord.collate(clips)[0])

    return run


def decord_views(files: FileList, length: int, stride: int, size: int, spec: str, views: int, batch: int) -> Make:
    """The published fine-tuning loader's way, see `peer_decord`."""
    reader = peer_decord.video_reader()

    def run(i: int) -> int:
        clips = []
        for record, rng in _samples(files, i, batch):
            clips += peer_decord.load_views(reader, record.path, rng, length, stride, size, spec, views)
        return len(np.stack(clips))

    return run


def ffmpeg(files: FileList, length: int, stride: int, batch: int) -> Make:
    """FFmpeg alone: it decodes every packet from the keyframe before each wanted frame up to that frame, to nowhere.

    Which packets these are is looked up beforehand; nothing is converted, cropped or kept.
    """
    keyframes: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def index(path: str) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the file of the frames in presentation order, and whether each packet is a keyframe."""
        if path not in keyframes:
            with av.open(path) as container:
                packets = [packet for packet in container.demux(video=0) if packet.size]
            times = np.array([packet.pts for packet in packets])
            keyframes[path] = np.argsort(times), np.array([packet.is_keyframe for packet in packets])
        return keyframes[path]

    def needed(path: str, rng: np.random.Generator) -> set[int]:
        order, key = index(path)
        wanted = order[sampling.pretrain_clip(len(order), rng, length, stride).reshape(-1)]
        starts = np.flatnonzero(key)
        first = starts[np.searchsorted(starts, wanted, side='right') - 1]
        return {n for a, b in zip(first.tolist(), wanted.tolist(), strict=True) for n in range(a, b + 1)}

    def run(i: int) -> Cost:
        jobs = [(record.path, needed(record.path, rng)) for record, rng in _samples(files, i, batch)]
        wall, cpu = time.perf_counter(), time.process_time()
        for path, positions in jobs:
            _decode(path, positions)
        return Cost(len(jobs), time.process_time() - cpu, time.perf_counter() - wall)

    return run


def _decode(path: str, positions: set[int]) -> None:
    last = max(positions)
    with av.open(path) as container:
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        for position, packet in enumerate(container.demux(video=0)):
            if position in positions:
                context.decode(packet)
            if position == last:
                break
        context.decode(None)


def workers(files: FileList, recipe: str, options: Mapping[str, Any], batch: int, batches: int, count: int) -> Make:
    """The whole training pipeline with worker processes, single-threaded each. Costs count all its processes."""
    data = pipeline.Data(files=files.path, recipe=recipe, options=options, workers=count, threads=1)
    steps = 10**6  # more than anybody waits for
    stream = pipeline.train_batches(
        data, files, seed=0, global_batch=batch, start_step=0, steps=steps, bad=pipeline.BadFiles(None)
    )
    this = psutil.Process()

    def cpu() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in (this, *this.children()))

    def settle() -> None:
        """Until the workers rest, all they may prepare being ready: the next candidate shall have the machine."""
        before = -1.0
        while (now := cpu()) - before > 0.02:
            before = now
            time.sleep(0.2)

    def run(i: int) -> Cost:
        for _ in range(2 * data.prefetch + 2):  # what lay ready, on both sides of the process boundary
            next(stream)
        wall, used = time.perf_counter(), cpu()
        for _ in range(batches):
            next(stream)
        wall, used = time.perf_counter() - wall, cpu() - used
        memory = [_memory(psutil.Process(p.pid)) for p in data_workers.worker_processes()]
        settle()
        return Cost(batch * batches, used, wall, {name: max(m[name] for m in memory) for name in memory[0]})

    return run


def apart(files: FileList, recipe: str, options: Mapping[str, Any], batch: int, batches: int, count: int) -> Make:
    """Processes that make batches side by side as `ours` does, and hand nothing over: what the machine can give."""
    context = multiprocessing.get_context('spawn')
    arguments = {'files': files, 'recipe': recipe, 'options': options, 'batch': batch}
    connections = []
    for _ in range(count):
        connection, theirs = context.Pipe()
        candidate = Candidate('', 'mvdjax.bench.ways:ours', arguments)
        context.Process(target=serve, args=(candidate, theirs), daemon=True).start()
        theirs.close()
        connections.append(connection)
    for connection in connections:
        if (answer := connection.recv()) is not None:
            raise UserError(answer)

    def run(i: int) -> Cost:
        wall = time.perf_counter()
        for number, connection in enumerate(connections):
            for k in range(batches):
                connection.send((i * count + number) * batches + k)
        costs = [connection.recv() for connection in connections for _ in range(batches)]
        return Cost(batch * batches * count, sum(cost.cpu for cost in costs), time.perf_counter() - wall)

    return run


def _memory(worker: psutil.Process) -> dict[str, float]:
    """A worker's memory in MiB: the peak resident (libraries and shared batches included), and its fair share now."""
    with open(f'/proc/{worker.pid}/status', encoding='ascii') as file:
        fields = dict(line.split(':', 1) for line in file)
    full = worker.memory_full_info()
    return {
        'worker_peak_rss_mib': int(fields['VmHWM'].split()[0]) / 1024,
        'worker_pss_mib': full.pss / 2**20,
        'worker_own_mib': full.uss / 2**20,
    }
