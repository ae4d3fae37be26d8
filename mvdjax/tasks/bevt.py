"""BEVT (arXiv 2112.01529): predict a frozen tokenizer's tokens of masked patches, of images, of clips, or of both."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvdjax import flops_swin, losses, metrics
from mvdjax.data.schema import FileList
from mvdjax.errors import UserError
from mvdjax.evaluation.means import Means
from mvdjax.metrics import Metrics
from mvdjax.models.bevt import MaskedSwin
from mvdjax.models.embed import Grid
from mvdjax.models.video_swin import VideoSwin, resize_mask
from mvdjax.tasks.backbones import swin_layer_index
from mvdjax.tasks.base import Batch, build_swin, model_input
from mvdjax.tasks.encoders import SwinEncoder
from mvdjax.tasks.tokenizer import RANDOM, Tokenizer, complete, make_tokenizer

STREAMS = ('video', 'image')


@dataclasses.dataclass(frozen=True)
class Task:
    """Masked token prediction.

    A batch has a sub-dict for each stream; where there is but one, it is flat. Blocks, merging, mask token, final norm
    and head are shared between the streams; embeddings and the layers that join the last two stages are their own.

    Attributes:
      model: section of `models.video_swin.VideoSwin`, `variant` naming the size.
      tokenizer: section of `tokenizer.make_tokenizer`.
      weights: factor of each stream's loss: {'image': 1.0} for BEVT's first stage, {'video': 1.0, 'image': 1.0} for the
        second. Streams that are not named are not trained and have no parameters.
    """

    model: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        """Refuses unknown streams, none, or one that would train nothing."""
        if not self.weights or set(self.weights) - set(STREAMS) or min(self.weights.values()) <= 0:
            raise UserError(
                f"task.weights takes 'video' and 'image', at least one, with factors above 0, not "
                f'{dict(self.weights)}; leave a stream out instead'
            )

    @property
    def rng_names(self) -> tuple[str, ...]:
        """Drop path only: the masks are data."""
        return ('drop_path',)

    def backbone(self) -> VideoSwin:
        """The encoder."""
        return build_swin(self.model)

    def feature_encoder(self) -> SwinEncoder:
        """The encoder, of clips where they are trained on; the map before the norm, which acts on another one here."""
        return SwinEncoder(self.backbone(), image='video' not in self.weights, normed=False)

    def masked_model(self) -> MaskedSwin:
        """The encoder with the layers that predict."""
        return MaskedSwin(self.backbone(), self.make_tokenizer().vocabulary)

    def make_tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        return make_tokenizer(self.tokenizer)

    def parts(self, batch: Batch) -> dict[str, Batch]:
        """A batch by streams. A flat one of a task of both streams is of images if it has one frame.

        Raises:
          UserError: a stream without a weight.
        """
        if all(isinstance(part, Mapping) for part in batch.values()):
            found = dict(batch)
        else:
            (only, *others) = self.weights
            found = {('image' if batch['video'].shape[1] == 1 else 'video') if others else only: batch}
        unknown = [name for name in found if name not in self.weights]
        if unknown:
            raise UserError(
                f'the batches have streams {", ".join(found)}, task.weights {", ".join(self.weights)}: name '
                'config.streams and run.stream as task.weights does'
            )
        return {name: found[name] for name in STREAMS if name in found}

    def check(self, batch: Batch) -> None:
        """Every stream is there, and the grids of its tokens, its mask and the model's predictions agree."""
        parts = self.parts(batch)
        missing = [name for name in self.weights if name not in parts]
        if missing:
            raise UserError(
                f'task.weights has {missing[0]!r}, but the data has no such stream: add config.streams.{missing[0]}'
            )
        for name, part in parts.items():
            if name == 'image' and part['video'].shape[1] != 1:
                raise UserError(
                    f"the stream 'image' takes images, its data makes clips of {part['video'].shape[1]} frames"
                )
            self._check_grids(name, part)

    def _check_grids(self, name: str, part: Batch) -> None:
        tokens = self.make_tokenizer().grid(part['token_video'].shape)
        predicted = self.predicted_grid(name, part['video'].shape)
        if tokens != predicted:
            raise UserError(
                f'{name}: the tokenizer makes a {_times(tokens)} grid of tokens, the model predicts '
                f'{_times(predicted)}: change size or token_size of the data recipe'
            )
        slots = tokens[0] // self.frames_per_slot(name)
        wanted = (slots, *tokens[1:])
        if part['mask'].shape[1] != slots * tokens[1] * tokens[2]:
            raise UserError(
                f'{name}: the data makes masks of {part["mask"].shape[1]} places, the task needs {_times(wanted)}: '
                'give the data recipe a patch of as many pixels as a token predicted'
            )

    def frames_per_slot(self, name: str) -> int:
        """Frames of tokens that are hidden together: those of a patch of the model."""
        return 1 if name == 'image' else self.backbone().patch[0]

    def predicted_grid(self, name: str, shape: tuple[int, ...]) -> Grid:
        """(frames, rows, columns) of the tokens that are predicted of a (..., t, h, w, c) video."""
        swin, frames = self.backbone(), self.frames_per_slot(name)
        rows, columns = (-(-side // p) for side, p in zip(shape[-3:-1], swin.patch[1:], strict=True))
        for _ in swin.depths[2:]:  # the last stage is brought to the grid of the one before it
            rows, columns = -(-rows // 2), -(-columns // 2)
        return -(-shape[-4] // frames) * frames, rows, columns

    def init(self, rng: jax.Array, batch: Batch) -> Any:
        """Fresh parameters of all streams of the task, whatever the batch has."""
        del batch  # no parameter depends on the size of an input
        swin, model = self.backbone(), self.masked_model()
        sides = [p * 2 ** (len(swin.depths) - 1) for p in swin.patch[1:]]
        mask = jnp.zeros((1, 1, 1, 1), bool)
        video, image = (jnp.zeros((1, frames, *sides, len(swin.mean))) for frames in (swin.patch[0], 1))
        if len(self.weights) == 2:
            return model.init(rng, video, mask, image, mask, method='two_streams')['params']
        alone = 'image' in self.weights
        return model.init(rng, image if alone else video, mask, image=alone)['params']

    def check_files(self, files: FileList) -> None:
        """Any list will do: labels are not used."""

    def sources(self) -> list[str]:
        """The tokenizer."""
        return self.make_tokenizer().sources()

    def frozen(self) -> dict[str, Any]:
        """The tokenizer's weights."""
        return {'tokenizer': self.make_tokenizer().params()}

    def abstract_frozen(self, batch: Batch) -> dict[str, Any]:
        """The shapes of the tokenizer's weights."""
        untrained = make_tokenizer({**complete(self.tokenizer), 'checkpoint': RANDOM})
        return {'tokenizer': jax.eval_shape(untrained.params)}

    def scores(
        self, params: Any, name: str, part: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """What is predicted of a stream, and what is asked.

        Returns:
          ((b, tokens, vocabulary) float32 scores of every token, (b, tokens) bool: hidden ones).
        """
        grid = self.predicted_grid(name, part['video'].shape)
        mask = part['mask'].reshape(len(part['mask']), -1, *grid[1:])
        keys = {key: jax.random.fold_in(value, STREAMS.index(name)) for key, value in rngs.items()}
        scores, _ = self.masked_model().apply(
            {'params': params}, model_input(part['video'], self.backbone()), mask, train, name == 'image', rngs=keys
        )
        return scores, resize_mask(mask, grid).reshape(len(mask), -1)

    def _tokenwise(
        self, params: Any, frozen: Any, name: str, part: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(cross-entropy, 1 where the most probable token is right, 1 where hidden), each (b, tokens) float32."""
        tokens = self.make_tokenizer().tokens(frozen['tokenizer'], part['token_video'])
        scores, hidden = self.scores(params, name, part, rngs, train)
        right = jnp.argmax(scores, axis=-1) == tokens
        return losses.token_cross_entropy(scores, tokens), right.astype(jnp.float32), hidden.astype(jnp.float32)

    def loss(
        self, params: Any, frozen: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Weighted sum of the streams' mean cross-entropies over all hidden tokens of the batch.

        The published code takes the mean of each GPU's tokens first; ours is the same on any number of devices.
        """
        total = jnp.zeros(())
        values: Metrics = {}
        for name, part in self.parts(batch).items():
            errors, right, hidden = self._tokenwise(params, frozen, name, part, rngs, train)
            count = jnp.sum(hidden)
            values[f'loss_{name}'] = jnp.sum(errors * hidden), count
            values[f'accuracy_{name}'] = jnp.sum(right * hidden), count
            total += self.weights[name] * values[f'loss_{name}'][0] / jnp.maximum(count, 1.0)
        return total, {'loss': metrics.scalar(total), **values}

    def predict(self, params: Any, frozen: Any, batch: Batch) -> dict[str, jax.Array]:
        """{'loss', 'accuracy': (b,)} over the hidden tokens of each sample of a flat batch."""
        ((name, part),) = self.parts(batch).items()
        errors, right, hidden = self._tokenwise(params, frozen, name, part, {}, train=False)
        count = jnp.maximum(jnp.sum(hidden, axis=1), 1.0)
        return {
            'loss': jnp.sum(errors * hidden, axis=1) / count,
            'accuracy': jnp.sum(right * hidden, axis=1) / count,
        }

    def flops(self, batch: Batch) -> dict[str, float]:
        """{'<stream>_encoder', '<stream>_decoder', 'tokenizer'}: model FLOPs of a training step."""
        model, tokenizer, found = self.masked_model(), self.make_tokenizer(), {'tokenizer': 0.0}
        for name, part in self.parts(batch).items():
            counts = flops_swin.stream(model, tuple(part['video'].shape), name == 'image')
            found |= {f'{name}_{layers}': value for layers, value in counts.items()}
            found['tokenizer'] += tokenizer.flops(tuple(part['token_video'].shape))
        return found

    def evaluators(self) -> dict[str, Means]:
        """The mean loss and accuracy."""
        return {'tokens': Means()}

    def layer_index(self, path: str, depth: int) -> Any:
        """See `backbones.swin_layer_index`."""
        del depth
        return swin_layer_index(path, self.backbone().depths)


def _times(grid: tuple[int, ...]) -> str:
    return ' x '.join(str(side) for side in grid)
