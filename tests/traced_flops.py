"""FLOPs of a traced program, counted product by product: what the formulas of mvdjax/flops*.py are held against."""

import math

import jax


def at_full_precision(eqn):
    """Whether a product is asked for in full: as those are that spread a Swin's bias tables."""
    return jax.lax.Precision.HIGHEST in (eqn.params['precision'] or ())


def products(jaxpr, counts=lambda eqn: True):
    """FLOPs of the matrix products for which `counts` holds, and of convolutions; a scan's as often as it runs."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general' and counts(eqn):
            (contracted, _), _ = eqn.params['dimension_numbers']
            shape = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
        if eqn.primitive.name == 'conv_general_dilated':
            kernel = eqn.invars[1].aval.shape
            outputs = eqn.params['dimension_numbers'].rhs_spec[0]
            places = math.prod(eqn.outvars[0].aval.shape) / math.prod(eqn.params['lhs_dilation'])  # the rest are zeros
            total += 2 * places * math.prod(kernel) / kernel[outputs]
        times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
        inner = [eqn.params[name] for name in ('jaxpr', 'call_jaxpr') if name in eqn.params]
        total += times * sum(products(getattr(j, 'jaxpr', j), counts) for j in inner)
    return total
