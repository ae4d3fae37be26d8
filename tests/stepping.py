"""A command like `mvdjax train` as far as its processes go: they start together and take steps that need each other.

Run as a script, with `mvdjax`'s own handling of errors around it; the scenario says what goes wrong.
"""

import argparse
import sys
import time

from mvdjax import main, processes
from mvdjax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    processes.add_arguments(parser)
    parser.add_argument('--workdir', required=True)
    parser.add_argument('--scenario', default='')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--init-timeout', type=float, default=60)
    parser.add_argument('--heartbeat-timeout', type=float, default=10)
    parser.epilog = 'example'


def run(args: argparse.Namespace) -> int:
    config = {'run.seed': args.seed, 'run.steps': 5}
    place = processes.start(args, config, args.workdir, args.init_timeout, args.heartbeat_timeout)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ('x',))
    split = NamedSharding(mesh, PartitionSpec('x'))
    add = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    for step in range(10**6):
        rows = np.full(jax.local_device_count(), place.process + step, np.float32)
        total = float(add(jax.make_array_from_process_local_data(split, rows)))
        if processes.is_main():
            print(f'step {step} {total:g}', flush=True)
        if place.process == 1 and step == 3:
            if args.scenario == 'raises':
                raise ValueError('a fault of the program')
            if args.scenario == 'user error':
                raise UserError('a list is broken: repair it')
            if args.scenario == 'hangs':
                time.sleep(3600)
        if args.scenario == '' and step == 3:
            print(f'broadcast {processes.broadcast([processes.index(), "x"])}', flush=True)
            print(f'exchange {processes.exchange("numbers", processes.index())}', flush=True)
            return 0
        time.sleep(0.05)
    return 0


if __name__ == '__main__':
    main.COMMANDS['stepping'] = ('stepping', 'take steps')
    sys.exit(main.main(['stepping', *sys.argv[1:]]))
