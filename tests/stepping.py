"""A command like `mvdjax train` as far as its processes go: they start together and take steps that need each other.

Run as a script, with `mvdjax`'s own handling of errors around it; the scenario says what goes wrong.
"""

import argparse
import sys
import time

from mvdjax import hang, main, processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    processes.add_arguments(parser)
    parser.add_argument('--workdir', required=True)
    parser.add_argument('--raises', action='store_true')
    parser.add_argument('--hangs', action='store_true')
    parser.add_argument('--hang-minutes', type=float, default=0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--init-timeout', type=float, default=60)
    parser.add_argument('--heartbeat-timeout', type=float, default=10)
    parser.add_argument('--visible', type=float, default=10)
    parser.epilog = 'example'


def run(args: argparse.Namespace) -> int:
    processes.VISIBLE = args.visible
    config = {'run.seed': args.seed, 'run.steps': 5}
    place = processes.start(args, config, args.workdir, args.init_timeout, args.heartbeat_timeout)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ('x',))
    split = NamedSharding(mesh, PartitionSpec('x'))
    add = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    told = f'broadcast {processes.broadcast([place.process, "x"])}, numbers {processes.exchange("x", place.process)}'
    print(told, flush=True)
    with hang.Watch(args.hang_minutes) as watch:
        take_steps(args, add, split, place.process, watch)
    return 0


def stuck() -> None:
    while True:
        time.sleep(1)


def take_steps(args, add, split, process, watch) -> None:
    import jax
    import numpy as np

    for step in range(10**6):
        rows = np.full(jax.local_device_count(), process + step, np.float32)
        total = float(add(jax.make_array_from_process_local_data(split, rows)))
        if processes.is_main():
            print(f'step {step} {total:g}', flush=True)
        if args.raises and process == 1 and step == 3:
            raise ValueError('a fault of the program')
        if args.hangs and process == 1 and step == 3:
            stuck()
        watch.beat(step)
        time.sleep(0.05)


if __name__ == '__main__':
    main.COMMANDS['stepping'] = ('stepping', 'take steps')
    sys.exit(main.main(['stepping', *sys.argv[1:]]))
