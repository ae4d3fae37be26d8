"""Scenes of the built-in demo data set: what is drawn, where it is at every frame, and the drawing itself.

A scene is one large textured shape on a drifting textured background, among a few small distractor shapes. Each kind of
shape has its kind of texture, in colours of its own each time. A scene has two independent labels: the kind of the
large shape, which one frame shows, and how that shape moves, which no single frame shows. The second holds by
construction, twice:

* The motion classes are pairs of twins. A scene is drawn for the even class of a pair; the odd class is the same
  distribution played backwards, background and distractors included.
* Position, angle and size of the large shape each get a path whatever the class. The class's own quantity follows its
  path; every other one is frozen at a random moment of its path, so a frame taken at random is distributed alike for
  all classes. (A frame known to be a video's first is not: what moves right comes from the left.)

Every number comes from `numpy` generators keyed by (seed, split, index): no frame depends on processes or their order.
"""

import dataclasses
import functools
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

APPEARANCE_CLASSES = ('disc', 'square', 'triangle', 'star', 'ring', 'cross', 'crescent', 'bars')
TEXTURES = ('noise', 'stripes', 'checks', 'dots')  # shape k has texture k modulo 4, ...
PERIODS = ((0.95, 1.3), (0.4, 0.55))  # ... the first four coarse, the others fine; in units of the shape's radius
# Neighbours (0, 1), (2, 3), ... are time-reversed twins; `clockwise` is as seen on the screen, where y points down.
MOTION_CLASSES = (
    'move_right',
    'move_left',
    'move_down',
    'move_up',
    'rotate_clockwise',
    'rotate_counterclockwise',
    'grow',
    'shrink',
)
SPLITS = ('train', 'val', 'test', 'images')

SIZES = ((96, 72), (112, 64), (80, 80), (128, 96), (88, 66), (64, 96), (72, 112))  # (width, height), pixels
FRAME_RATES = tuple(Fraction(rate) for rate in ('10', '12', '15', '24', '25', '30', '30000/1001'))
FRAMES = (18, 28)  # shortest and longest video
WEBM_SHARE = 0.25

# Lengths are in units of the picture's short side; speeds are for 16 consecutive frames.
RADIUS = (0.2, 0.42)  # smallest and largest large shape
REACH = 0.34  # the large shape's centre stays this close to the picture's, along each axis: a centre crop keeps it
TRANSLATION = (0.35, 0.6)
ROTATION = (70.0, 120.0)  # degrees
TILT = 12.0  # degrees, largest either way: the angle a shape turns about is near its upright one
GROWTH = (1.8, 2.6)  # factor
TEXTURE_CONTRAST = (26.0, 40.0)  # luma of the large shape's and the distractors' textures, either way
BACKGROUND_SPEED = 0.1  # largest
WOBBLE = (0.006, 0.006, 2.0, 0.015)  # largest amplitude in x, y, angle (degrees), log radius
DISTRACTORS = (1, 1)  # fewest and most
DISTRACTOR_RADIUS = (0.05, 0.085)
DISTRACTOR_SPEED = 0.1  # largest, along each axis
DISTRACTOR_ROTATION = 40.0  # degrees, largest

_CANVAS = 144  # side of a sprite before scaling, pixels
_CANVAS_RADIUS = 64.0  # of the shape on that canvas; above the largest radius on a frame, so sprites only shrink
_OVERSAMPLING = 4  # mask samples per canvas pixel and axis
_LUMA = np.array([0.299, 0.587, 0.114])

Frames = NDArray[np.uint8]
Floats = NDArray[np.floating]


def generator(seed: int, split: str, stream: int, index: int) -> np.random.Generator:
    """Returns the random generator of one video (`stream` says for which purpose); all integers are >= 0."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, SPLITS.index(split), stream, index))))


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is known about a video before anything is drawn.

    Attributes:
      motion: index into `MOTION_CLASSES`.
      appearance: index into `APPEARANCE_CLASSES`.
      width, height: pixels, even.
      frames: number of frames, within `FRAMES`.
      fps: frames per second.
      container: 'mp4' or 'webm'.
    """

    motion: int
    appearance: int
    width: int
    height: int
    frames: int
    fps: Fraction
    container: str


def labels(seed: int, split: str, index: int) -> tuple[int, int]:
    """Returns (motion, appearance) of a video.

    Every aligned run of 8 indices holds each motion and each appearance once; every aligned run of 64 holds each pair
    once. Within that, the order is random.
    """
    block, position = divmod(index, 64)
    rng = generator(seed, split, 0, block)
    motions, appearances, shifts = rng.permutation(8), rng.permutation(8), rng.permutation(8)
    row, column = divmod(position, 8)
    column = int(rng.permuted(np.tile(np.arange(8), (8, 1)), axis=1)[row, column])
    return int(motions[column]), int(appearances[(column + shifts[row]) % 8])


def plan_video(seed: int, split: str, index: int) -> Plan:
    """Returns the plan of a video; `split` is one of `SPLITS` (a scene of 'images' is shown at one frame only)."""
    rng = generator(seed, split, 1, index)
    motion, appearance = labels(seed, split, index)
    width, height = SIZES[rng.integers(len(SIZES))]
    # Short videos are more frequent: the object must stay in the picture, so a long video has to be a slow one.
    frames = int(rng.triangular(FRAMES[0], FRAMES[0], FRAMES[1] + 1))
    fps = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    container = 'webm' if rng.random() < WEBM_SHARE else 'mp4'
    return Plan(motion, appearance, width, height, frames, fps, container)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene ready to be drawn.

    Attributes:
      width, height: pixels of a frame.
      background: uint8 (height + 2 m, width + 2 m, 3), RGB, with a border m wide enough for the drift.
      offsets: (frames, 2), where the frame's left upper corner lies on the background: x, y in pixels.
      sprites: uint8 (144, 144, 4) each, premultiplied RGB and coverage; the large shape is the last, on top.
      tracks: (sprites, frames, 4): centre x and y in pixels, angle in radians (clockwise), radius in pixels.
    """

    width: int
    height: int
    background: Frames
    offsets: Floats
    sprites: tuple[Frames, ...]
    tracks: Floats

    def backwards(self) -> 'Scene':
        """Returns the same scene with time reversed."""
        return dataclasses.replace(self, offsets=self.offsets[::-1], tracks=self.tracks[:, ::-1])


def draw_scene(plan: Plan, rng: np.random.Generator) -> Scene:
    """Draws a scene of the plan's classes, size and length; twin classes on equal generators give reversed scenes."""
    short = min(plan.width, plan.height)
    times: Floats = (np.arange(plan.frames) - (plan.frames - 1) / 2) / 15.0  # in spans of 16 frames, around the middle
    span = float(times[-1] - times[0])

    border = int(np.ceil(BACKGROUND_SPEED * short * span / 2)) + 2
    shape = (plan.height + 2 * border, plan.width + 2 * border)
    background_luma = rng.uniform(50, 205)
    pattern = texture(rng, *shape, short * rng.uniform(0.25, 0.6), str(rng.choice(TEXTURES)))
    background = _paint(rng, pattern, background_luma, rng.uniform(4, 10), (4, 20)).round().astype(np.uint8)
    heading, speed = rng.uniform(0, 2 * np.pi), BACKGROUND_SPEED * short * np.sqrt(rng.random())
    offsets = border + speed * times[:, None] * np.array([np.cos(heading), np.sin(heading)])

    sprites, tracks = [], []
    others = np.delete(np.arange(len(APPEARANCE_CLASSES)), plan.appearance)
    for kind in rng.choice(others, rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1), replace=False):
        sprites.append(_sprite(rng, int(kind), background_luma, 50))
        tracks.append(_distractor_track(rng, plan, times))
    sprites.append(_sprite(rng, plan.appearance, background_luma, 80))
    tracks.append(_object_track(rng, plan, times))
    scene = Scene(plan.width, plan.height, background, offsets, tuple(sprites), np.stack(tracks))
    return scene.backwards() if plan.motion % 2 else scene


def _distractor_track(rng: np.random.Generator, plan: Plan, times: Floats) -> Floats:
    """Returns (frames, 4): a slow straight path at constant size, symmetric under time reversal."""
    short = min(plan.width, plan.height)
    middle = np.array([*rng.uniform(0, (plan.width, plan.height)), rng.uniform(0, 2 * np.pi)])
    top_speed = np.array([DISTRACTOR_SPEED * short, DISTRACTOR_SPEED * short, np.radians(DISTRACTOR_ROTATION)])
    track = middle + rng.uniform(-top_speed, top_speed) * times[:, None]
    return np.column_stack([track, np.full(len(times), short * rng.uniform(*DISTRACTOR_RADIUS))])


def _object_track(rng: np.random.Generator, plan: Plan, times: Floats) -> Floats:
    """Returns (frames, 4), the large shape's path for the even class of the plan's pair of twins."""
    short, span = min(plan.width, plan.height), times[-1] - times[0]
    x, y, reach = plan.width / 2, plan.height / 2, REACH * short
    lower = (x - reach, y - reach, -np.radians(TILT), np.log(RADIUS[0] * short))
    upper = (x + reach, y + reach, np.radians(TILT), np.log(RADIUS[1] * short))
    moving = plan.motion // 2
    speeds = (
        short * rng.uniform(*TRANSLATION),
        short * rng.uniform(*TRANSLATION),
        np.radians(rng.uniform(*ROTATION)),
        np.log(rng.uniform(*GROWTH)),
    )
    path = np.empty((len(times), 4))
    for axis in range(4):
        speed, low, high = speeds[axis], lower[axis], upper[axis]
        if axis == 2:  # an angle has no border to stay away from
            middle = rng.uniform(low, high)
        else:  # the path ends within its range, with room left for where it lies
            speed = min(speed, 0.9 * (high - low) / span)
            middle = rng.uniform(low + speed * span / 2, high - speed * span / 2)
        frozen = rng.choice(times)
        path[:, axis] = middle + speed * (times if axis == moving else frozen)
    amplitude = np.array(WOBBLE) * (short, short, np.pi / 180, 1.0) * rng.uniform(0, 1, 4)
    path += amplitude * np.sin(2 * np.pi * (rng.uniform(0.5, 2.0, 4) * times[:, None] + rng.uniform(0, 1, 4)))
    path[:, 3] = np.exp(path[:, 3])
    return path


def render_scene(scene: Scene, moments: range | None = None) -> Frames:
    """Renders the frames `moments` (all by default) to uint8 (frames, height, width, 3), RGB."""
    size = (scene.width, scene.height)
    moments = range(len(scene.offsets)) if moments is None else moments
    frames = np.empty((len(moments), scene.height, scene.width, 3), np.uint8)
    for slot, moment in enumerate(moments):
        x, y = scene.offsets[moment]
        shift = np.array([[1.0, 0.0, x], [0.0, 1.0, y]])
        picture = cv2.warpAffine(scene.background, shift, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        blend = picture.astype(np.float32)
        for sprite, track in zip(scene.sprites, scene.tracks[:, moment], strict=True):
            layer = _place(sprite, track, size).astype(np.float32)
            blend = blend * (1.0 - layer[..., 3:] / 255.0) + layer[..., :3]
        frames[slot] = np.clip(blend + 0.5, 0, 255)
    return frames


def _place(sprite: Frames, track: Floats, size: tuple[int, int]) -> Frames:
    """Returns uint8 (height, width, 4): the sprite at centre x, y, angle, radius on an empty frame of `size`."""
    x, y, angle, radius = track
    # Shrink by area averaging first, then turn and shift at (nearly) unit scale: no aliasing, smooth edges.
    side = max(4, round(_CANVAS * radius / _CANVAS_RADIUS))
    small = cv2.resize(sprite, (side, side), interpolation=cv2.INTER_AREA)
    scale = radius * _CANVAS / (_CANVAS_RADIUS * side)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (side - 1) / 2)
    shift = np.array([x - 0.5, y - 0.5]) - turn @ centre
    return cv2.warpAffine(small, np.column_stack([turn, shift]), size, flags=cv2.INTER_LINEAR)


def _sprite(rng: np.random.Generator, kind: int, background_luma: float, gap: float) -> Frames:
    """Returns uint8 (144, 144, 4) for a shape whose mean brightness is at least `gap` (<= 82) off the background's."""
    room = {1: 210 - background_luma, -1: background_luma - 45}
    sign = rng.choice([sign for sign in (1, -1) if room[sign] >= gap])
    luma = background_luma + sign * rng.uniform(gap, min(room[sign], 130))
    scale, pattern_kind = divmod(kind, len(TEXTURES))
    pattern = texture(rng, _CANVAS, _CANVAS, _CANVAS_RADIUS * rng.uniform(*PERIODS[scale]), TEXTURES[pattern_kind])
    # The gradient makes every angle look different, on a disc under a symmetric texture too.
    along, _ = _turned_grid(rng, _CANVAS, _CANVAS)
    pattern = 0.75 * pattern + 0.25 * np.clip(along / (2 * _CANVAS_RADIUS) + 0.5, 0, 1)
    colours = _paint(rng, pattern, luma, rng.uniform(*TEXTURE_CONTRAST))
    mask = shape_mask(kind)[..., None]
    return np.concatenate([colours * mask, 255 * mask], axis=-1).round().astype(np.uint8)


def _paint(
    rng: np.random.Generator, pattern: Floats, luma: float, contrast: float, hues: tuple[float, float] = (10, 60)
) -> Floats:
    """Maps a pattern (h, w) in [0, 1] to RGB (h, w, 3) in [0, 255] between two random colours luma -+ contrast."""
    ends = []
    for sign in rng.permutation([-1, 1]):
        # Hue is added at equal luma, so chroma subsampling in the codecs costs no edge.
        hue = rng.normal(size=3)
        hue -= _LUMA @ hue
        ends.append(np.clip(luma + sign * contrast + hue / np.abs(hue).max() * rng.uniform(*hues), 0, 255))
    return ends[0] + pattern[..., None] * (ends[1] - ends[0])


def _turned_grid(rng: np.random.Generator, height: int, width: int) -> tuple[Floats, Floats]:
    """Returns two (height, width) coordinates in pixels, orthogonal, centred, at a random angle."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def texture(rng: np.random.Generator, height: int, width: int, period: float, kind: str) -> Floats:
    """Returns a random pattern (height, width) in [0, 1] of one of `TEXTURES`, with a period in pixels."""
    if kind == 'noise':
        cells = (int(2 * width / period) + 3, int(2 * height / period) + 3)
        grid = rng.random((cells[1], cells[0]))
        smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        return (smooth - smooth.min()) / (smooth.max() - smooth.min())
    u, v = (2 * np.pi / period * along + rng.uniform(0, 2 * np.pi) for along in _turned_grid(rng, height, width))
    if kind == 'stripes':
        wave = 2.0 * np.sin(u)
    elif kind == 'checks':
        wave = 3.0 * np.sin(u) * np.sin(v)
    else:
        wave = 2.0 * (np.cos(u) + np.cos(v)) - 0.6
    return 0.5 + 0.5 * np.clip(wave, -1, 1)


@functools.cache
def shape_mask(kind: int) -> Floats:
    """Returns the coverage (144, 144) in [0, 1] of `APPEARANCE_CLASSES[kind]`, upright, inside the unit radius."""
    side = _CANVAS * _OVERSAMPLING
    axis = (np.arange(side) + 0.5 - side / 2) / (_CANVAS_RADIUS * _OVERSAMPLING)
    x, y = np.meshgrid(axis, axis)
    distance = np.hypot(x, y)
    match APPEARANCE_CLASSES[kind]:
        case 'disc':
            inside = distance < 0.92
        case 'square':
            inside = np.maximum(abs(x), abs(y)) < 0.76
        case 'triangle':
            inside = _polygon(x, y, _corners(3, 1.08, 1.08))
        case 'star':
            inside = _polygon(x, y, _corners(5, 1.08, 0.46))
        case 'ring':
            inside = (distance < 1.0) & (distance > 0.52)
        case 'cross':
            inside = (np.minimum(abs(x), abs(y)) < 0.27) & (np.maximum(abs(x), abs(y)) < 0.98)
        case 'crescent':
            inside = (distance < 1.0) & (np.hypot(x - 0.55, y) > 0.75)
        case 'bars':
            inside = (abs(x) < 0.88) & (abs(y) < 0.8) & (abs(y) > 0.26)
    blocks = inside.reshape(_CANVAS, _OVERSAMPLING, _CANVAS, _OVERSAMPLING)
    return blocks.mean(axis=(1, 3))


def _corners(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    """Returns the corners (x, y) of a star polygon, tips at radius `outer` alternating with notches at `inner`."""
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    # With equal radii the notches would make a 2n-gon; a notch on the edge between two tips leaves a plain n-gon.
    notch = inner if inner < outer else outer * np.cos(np.pi / points)
    radii = np.where(np.arange(2 * points) % 2, notch, outer)
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def _polygon(x: Floats, y: Floats, corners: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """Returns which points lie inside a polygon (even-odd rule)."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside
