"""One door to the models that convert knows, ViTs and Swins, whichever a file or a checkpoint holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mvdjax.convert import architecture, hub, swin
from mvdjax.convert.architecture import Architecture, Given
from mvdjax.convert.families import FAMILIES, AnyFamily, Family
from mvdjax.convert.files import Source
from mvdjax.convert.layouts import Shape
from mvdjax.convert.rules import Rule
from mvdjax.convert.swin import SwinModel
from mvdjax.convert.swin_families import SWIN_FAMILIES, SwinFamily
from mvdjax.errors import UserError

Model = Architecture | SwinModel


def read(family: AnyFamily, source: Source, given: Given, average: bool) -> Model:
    """Gives the tensors of a file the family's names, and finds the model that they belong to.

    Args:
      family: of the file.
      source: the file.
      given: what tensors do not say.
      average: take the moving average that lies beside the weights.

    Raises:
      UserError: tensors are missing, or do not say enough.
    """
    if isinstance(family, SwinFamily):
        swin.prepare(source, family, average)
        return swin.read_model(family, source.shapes, given)
    if average:
        raise UserError(f'--ema: files of the family {family.name} hold no moving average beside the weights')
    if given.window:
        raise UserError(f'--window: models of the family {family.name} have no windows')
    source.rename(family.canonical)
    return architecture.read_architecture(family, source.shapes, hub.read(source.hub_config, given))


def of_checkpoint(shapes: Mapping[str, Shape], meta: Mapping[str, Any]) -> Model:
    """The model of one of our checkpoints.

    Args:
      shapes: of its leaves, {path: shape}.
      meta: its meta, see `checkpoints.read_meta`.

    Raises:
      UserError: a model of neither kind.
    """
    if meta.get('backbone', {}).get('kind') == 'swin':
        return swin.of_leaves(shapes, meta)
    return architecture.of_checkpoint(shapes, meta)


def make_rules(family: AnyFamily, model: Model) -> list[Rule]:
    """All rules of a model that fits the family."""
    if isinstance(family, SwinFamily):
        assert isinstance(model, SwinModel)
        return swin.make_rules(family, model)
    assert isinstance(model, Architecture)
    return architecture.make_rules(family, model)


def make_tables(family: AnyFamily, model: Model) -> dict[str, np.ndarray]:
    """The fixed position tables that files of this family hold and that are compared when one is read."""
    if isinstance(family, Family) and isinstance(model, Architecture):
        return architecture.make_tables(family, model)
    return {}


def file_contents(family: AnyFamily, model: Model, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as a file of the family names them, with the buffers that it has besides."""
    if isinstance(family, SwinFamily) and isinstance(model, SwinModel):
        whole = {**tensors, **swin.buffers(family, model)}
        return {family.written(name): array for name, array in whole.items()}
    return tensors


def _differences(family: AnyFamily, model: Model) -> list[str]:
    if isinstance(family, SwinFamily) and isinstance(model, SwinModel):
        return swin.differences(family, model)
    if isinstance(family, Family) and isinstance(model, Architecture):
        return architecture.differences(family, model)
    return ['one is a ViT, the other a Swin']


def check_family(family: AnyFamily, model: Model) -> None:
    """Raises UserError, naming every difference, unless the model can be written as this family."""
    wrong = _differences(family, model)
    if wrong:
        raise UserError(f'the checkpoint cannot be written as {family.name}: {"; ".join(wrong)}')


def family_of(model: Model) -> AnyFamily:
    """The authors' own family (not Hugging Face's) that a model can be written as.

    Raises:
      UserError: there is none, with what is in the way of the nearest.
    """
    kin = SWIN_FAMILIES if isinstance(model, SwinModel) else FAMILIES
    own = [f for f in kin.values() if not f.hub_class and isinstance(f, SwinFamily) == isinstance(model, SwinModel)]
    fitting = [family for family in own if not _differences(family, model)]
    if isinstance(model, Architecture) and model.decoders:
        # A plain encoder of the same positions may be several things, a decoder names its owner.
        fitting = [family for family in fitting if isinstance(family, Family) and family.decoders]
    if not fitting:
        nearest = min(own, key=lambda family: len(_differences(family, model)))
        raise UserError(
            f'the checkpoint is no model of a published family; the nearest is {nearest.name}, but '
            f'{"; ".join(_differences(nearest, model))}'
        )
    return fitting[0]
