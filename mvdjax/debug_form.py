"""The `:debug` form of a config file: the same stage with a tiny model, two steps long, on the demo data."""

import ml_collections

DEMO = 'quickstart/data'  # of `mvdjax data demo --output=quickstart/data`, seen from the repository's folder


def is_debug(arg: str) -> bool:
    """Whether the argument of a config file asks for its debug form.

    Raises:
      ValueError: it is anything but '' or 'debug'.
    """
    if arg not in ('', 'debug'):
        raise ValueError(f'unknown argument {arg!r}; there is only debug')
    return arg == 'debug'


def shorten(config: ml_collections.ConfigDict) -> None:
    """Makes a config two steps long, at one rate for all recipes; the file itself shrinks the model and the data."""
    config.run = {'global_batch': 8, 'steps': 2, 'log_every': 1}
    kept = {key: value for key, value in config.optim.items() if not key.endswith('rate')}
    config.optim = {**kept, 'peak_rate': 1e-3, 'warmup_epochs': 0.0}
