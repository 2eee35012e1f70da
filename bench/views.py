"""Views of images: declared as data, built in batches on the device.

A method declares `Views(shared, each)`; the loop builds them. Geometry is composed into one affine map and sampled once
(bilinear, zero fill); flips and quarter turns are exact index operations. Every view carries the affine map back to its
source, so that dense methods can bring features into register.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 4  # images of a batch that are worked on together on the CPU

# --------------------------------------------------------------------------------------------------------- declarations


@dataclass(frozen=True)
class Flip:
    """Mirror left-right with probability `horizontal`, top-bottom with probability `vertical`; exact."""

    horizontal: float = 0.5
    vertical: float = 0.0


@dataclass(frozen=True)
class HalfTurn:
    """Turn by 180 degrees with probability `p`; exact."""

    p: float = 0.5


@dataclass(frozen=True)
class QuarterTurn:
    """Turn by 0, 90, 180 or 270 degrees, each as likely; exact."""


@dataclass(frozen=True)
class Rotate:
    """Rotate about the centre by an angle uniform in [-degrees, degrees]."""

    degrees: float


@dataclass(frozen=True)
class Crop:
    """Random resized crop: an area share and an aspect ratio (log-uniform), resized to `share` of the views' side.

    A side is rounded to a multiple of 16 px and is at least 32 px.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    share: float = 1.0


@dataclass(frozen=True)
class Quadrant:
    """Go on with one quadrant, enlarged towards the others by `overlap` of the image's side; crops stay inside."""

    row: int  # 0 or 1
    column: int  # 0 or 1
    overlap: float = 0.3


@dataclass(frozen=True)
class Neighbour:
    """Move a shared crop by its own width or height, to one of the sides where most of it stays in the image."""


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation factors 1 +- strength, hue shift in turns; in this order, with probability `p`.

    torchvision draws a new order each time; ours is fixed. Saturation and hue leave one-channel images alone.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 1.0


@dataclass(frozen=True)
class Gray:
    """Replace the colours by their luma with probability `p`."""

    p: float


@dataclass(frozen=True)
class Blur:
    """Gaussian blur, sigma uniform in `sigma` (px where views are 224 px, scaled with `size`), with probability `p`."""

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5


@dataclass(frozen=True)
class Solarize:
    """Invert what is brighter than `threshold` with probability `p`."""

    p: float
    threshold: float = 0.5


@dataclass(frozen=True)
class Cutout:
    """Blank `holes` squares of `size` (px of a 224 px image, scaled with the view) with the image's mean."""

    holes: int
    size: float


Op = Flip | HalfTurn | QuarterTurn | Rotate | Crop | Quadrant | Neighbour | Jitter | Gray | Blur | Solarize | Cutout


@dataclass(frozen=True)
class Views:
    """What a method wants to see: `shared` is drawn once per image, then `each` once per view."""

    each: tuple[tuple[Op, ...], ...]
    shared: tuple[Op, ...] = ()


# ---------------------------------------------------------------------------------------------------------------- view


@dataclass(frozen=True)
class View:
    """One augmentation of a batch.

    images: (B, C, *S). affine: (B, 2, 3), maps (x, y, 1) of the view, each in [-1, 1], to the source's (x, y).
    turns: (B,) quarter turns (counter-clockwise) made last, after everything that was sampled.
    """

    images: Tensor
    affine: Tensor
    turns: Tensor

    def unturn(self, maps: Tensor) -> Tensor:
        """Undoes the view's last exact turns on maps of any resolution: (B, K, n, n) -> (B, K, n, n)."""
        return turn(maps, (4 - self.turns) % 4)


def turn(images: Tensor, turns: Tensor) -> Tensor:
    """Turns each image of (B, C, H, W) by its own quarter turns (counter-clockwise); H = W unless all are even."""
    out = images
    for k in (1, 2, 3):
        chosen = (turns == k).nonzero().flatten()
        if len(chosen):
            out = out.index_copy(0, chosen.to(images.device), torch.rot90(images[chosen.to(images.device)], k, (2, 3)))
    return out


@dataclass(frozen=True)
class Batch:
    """One step's views and where training stands."""

    views: list[View]  # each (B, C, S, S), normalised
    index: Tensor  # (B,) place of every image in the corpus
    progress: float  # 0 at the first step, towards 1
    stage: int  # which of the recipe's stages
    labels: Tensor | None = None  # (B,) image-level grades, where the method needs them
    pairs: list[View] = field(default_factory=list)  # views of the second modality, where the method needs it


MEAN_STD = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def normalise(images: Tensor) -> Tensor:
    """(B, C, *S) in [0, 1] -> ImageNet statistics for three channels, mean and deviation 0.5 for any other number."""
    channels = images.shape[1]
    mean, std = MEAN_STD.get(channels, ((0.5,) * channels, (0.5,) * channels))
    shape = (1, channels, *[1] * (images.dim() - 2))
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


class _Canvas:
    """A batch on its way through a pipeline: pixels, what is still to be sampled, and the way back."""

    def __init__(self, images: Tensor, size: int) -> None:
        self.images, self.size = images, size
        batch = len(images)
        self.pending = _identity(batch)  # new frame -> current pixels
        self.sampling = False
        self.out_size: int | None = None
        self.affine = _identity(batch)  # current pixels -> source
        self.turns = torch.zeros(batch, dtype=torch.long)

    def copy(self) -> _Canvas:
        twin = _Canvas.__new__(_Canvas)
        twin.__dict__.update(self.__dict__)
        return twin

    def compose(self, matrix: Tensor) -> None:
        self.pending = self.pending @ matrix
        self.sampling = True

    def flush(self) -> None:
        if not self.sampling:
            return
        height = self.out_size or self.images.shape[2]
        width = self.out_size or self.images.shape[3]
        self.images = sample(self.images, self.pending[:, :2], (height, width))
        self.affine = self.affine @ self.pending
        self.pending, self.sampling = _identity(len(self.images)), False

    def exact(self, matrix: Tensor) -> None:
        self.affine = self.affine @ matrix


def sample(images: Tensor, affine: Tensor, size: tuple[int, ...], mode: str = "bilinear") -> Tensor:
    """Images (B, C, H, W) read through (B, 2, 3) maps from the new frame to theirs, zero outside: (B, C, *size)."""
    return F.grid_sample(images, _grid(affine.to(images), size), mode=mode, padding_mode="zeros", align_corners=False)


def _grid(affine: Tensor, size: tuple[int, ...]) -> Tensor:
    """What F.affine_grid gives, (B, H, W, 2), built from a row and a column: an eighth of its time."""
    down, across = ((2 * torch.arange(side, device=affine.device) + 1) / side - 1 for side in size)
    grid = affine.new_empty(len(affine), *size, 2)
    for axis in (0, 1):
        columns = affine[:, axis, 0, None] * across  # (B, W)
        rows = affine[:, axis, 1, None] * down + affine[:, axis, 2, None]  # (B, H)
        torch.add(columns[:, None, :], rows[:, :, None], out=grid[..., axis])
    return grid


def _identity(batch: int) -> Tensor:
    return torch.eye(3, dtype=torch.float64).repeat(batch, 1, 1)


class _Draws:
    """The random numbers of a batch: the same for every image in whatever pieces the batch is worked on."""

    def __init__(self, generator: torch.Generator, batch: int) -> None:
        self._generator, self._batch, self._made = generator, batch, list[Tensor]()
        self.begin(slice(0, batch))

    def begin(self, rows: slice | list[int]) -> None:
        """Starts again at the first number, for some images of the batch."""
        self._rows, self._next = rows, 0

    def _draw(self, make: Callable[[], Tensor]) -> Tensor:
        if self._next == len(self._made):
            self._made.append(make())
        self._next += 1
        return self._made[self._next - 1][self._rows]

    def share(self, *columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform in [0, 1): (rows, *columns)."""
        shape = (self._batch, *columns)
        return self._draw(lambda: torch.rand(shape, generator=self._generator, dtype=dtype))

    def uniform(self, low: float, high: float) -> Tensor:
        """Uniform in [low, high): (rows,)."""
        return self.share(dtype=torch.float64) * (high - low) + low

    def below(self, count: int) -> Tensor:
        """Whole numbers from 0 to count - 1: (rows,)."""
        return self._draw(lambda: torch.randint(count, (self._batch,), generator=self._generator))

    def chosen(self, p: float) -> Tensor:
        """Which rows happen to be hit, each with probability p."""
        return (self.share() < p).nonzero().flatten()


# ---------------------------------------------------------------------------------------------------------- operations


def _flip(canvas: _Canvas, op: Flip, draws: _Draws) -> None:
    batch = len(canvas.images)
    shares = (draws.share(), draws.share())
    canvas.flush()
    for axis, probability, dim in ((0, op.horizontal, 3), (1, op.vertical, 2)):
        hit = shares[axis] < probability
        if hit.any():
            where = hit.nonzero().flatten().to(canvas.images.device)
            canvas.images = canvas.images.index_copy(0, where, canvas.images[where].flip(dim))
            matrix = _identity(batch)
            matrix[:, axis, axis] = torch.where(hit, -1.0, 1.0).double()
            canvas.exact(matrix)


def _turn_canvas(canvas: _Canvas, turns: Tensor) -> None:
    canvas.flush()
    canvas.images = turn(canvas.images, turns)
    canvas.turns = (canvas.turns + turns) % 4
    angle = turns.double() * (math.pi / 2)
    matrix = _identity(len(turns))
    matrix[:, 0, 0] = matrix[:, 1, 1] = torch.cos(angle).round()
    matrix[:, 0, 1] = -torch.sin(angle).round()
    matrix[:, 1, 0] = torch.sin(angle).round()
    canvas.exact(matrix)


def _half_turn(canvas: _Canvas, op: HalfTurn, draws: _Draws) -> None:
    _turn_canvas(canvas, 2 * (draws.share() < op.p).long())


def _quarter_turn(canvas: _Canvas, op: QuarterTurn, draws: _Draws) -> None:
    _turn_canvas(canvas, draws.below(4))


def _rotate(canvas: _Canvas, op: Rotate, draws: _Draws) -> None:
    angle = draws.uniform(-op.degrees, op.degrees) * (math.pi / 180)
    height = canvas.out_size or canvas.images.shape[2]
    width = canvas.out_size or canvas.images.shape[3]
    matrix = _identity(len(angle))
    matrix[:, 0, 0] = matrix[:, 1, 1] = torch.cos(angle)
    matrix[:, 0, 1] = torch.sin(angle) * (height / width)
    matrix[:, 1, 0] = -torch.sin(angle) * (width / height)
    canvas.compose(matrix)


def _crop(canvas: _Canvas, op: Crop, draws: _Draws) -> None:
    """As torchvision's RandomResizedCrop, but a box that does not fit is clipped to the image, not drawn again."""
    batch = len(canvas.images)
    area = draws.uniform(*op.scale)
    ratio = draws.uniform(math.log(op.ratio[0]), math.log(op.ratio[1])).exp()
    width = (area * ratio).sqrt().clamp(max=1.0)
    height = (area / ratio).sqrt().clamp(max=1.0)
    matrix = _identity(batch)
    matrix[:, 0, 0], matrix[:, 1, 1] = width, height
    matrix[:, 0, 2] = draws.uniform(-1.0, 1.0) * (1.0 - width)
    matrix[:, 1, 2] = draws.uniform(-1.0, 1.0) * (1.0 - height)
    canvas.compose(matrix)
    canvas.out_size = canvas.size if op.share == 1 else max(32, 16 * round(canvas.size * op.share / 16))


def _quadrant(canvas: _Canvas, op: Quadrant, draws: _Draws) -> None:
    side = 0.5 + op.overlap  # of the whole side
    matrix = _identity(len(canvas.images))
    matrix[:, 0, 0] = matrix[:, 1, 1] = side
    matrix[:, 0, 2] = (1 - side) * (1 if op.column else -1)
    matrix[:, 1, 2] = (1 - side) * (1 if op.row else -1)
    canvas.compose(matrix)


def _neighbour(canvas: _Canvas, op: Neighbour, draws: _Draws) -> None:
    moves = torch.tensor([(-2.0, 0.0), (2.0, 0.0), (0.0, -2.0), (0.0, 2.0)], dtype=torch.float64)  # in windows' frames
    linear, centre = canvas.pending[:, :2, :2], canvas.pending[:, :2, 2]
    moved = centre[:, None] + torch.einsum("bij,mj->bmi", linear, moves)  # (B, 4, 2) new centres
    reach = linear.abs().sum(2)[:, None]  # (B, 1, 2) half sides of the windows
    outside = (moved.abs() + reach - 1).clamp(min=0).amax(2)  # (B, 4)
    room = outside <= outside.amin(1, keepdim=True) + 1e-9
    chance = draws.share(room.shape[1], dtype=torch.float64) + room.double()
    matrix = _identity(len(canvas.images))
    matrix[:, :2, 2] = moves[chance.argmax(1)]
    canvas.compose(matrix)


_LUMA = (0.299, 0.587, 0.114)


def luma(images: Tensor) -> Tensor:
    """ITU-R 601 luma of (B, 3, H, W), or the one channel as it is: (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotates the hue of RGB images (B, 3, H, W) in [0, 1] by `shift` (B,) turns in HSV space, without a map by cases.

    With value v and chroma c every channel is v - c * clamp(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6, n = 5, 3, 1.
    """
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    red, green, blue = images.unbind(1)
    scale = chroma.clamp(min=1e-12).reciprocal_()
    hue = torch.where(
        high == red,
        (green - blue) * scale,
        torch.where(high == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    hue += 6 * shift.to(images)[:, None, None]
    shifted = torch.empty_like(images)
    for channel, n in enumerate((5, 3, 1)):
        k = hue + n
        k -= (k / 6).floor_().mul_(6)
        torch.minimum(k, 4 - k, out=k).clamp_(0, 1).mul_(chroma)
        torch.sub(high, k, out=shifted[:, channel])
    return shifted


def _jitter(canvas: _Canvas, op: Jitter, draws: _Draws) -> None:
    canvas.flush()
    batch = len(canvas.images)
    strengths = (op.brightness, op.contrast, op.saturation)
    factors = [draws.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    hue = draws.uniform(-op.hue, op.hue)
    hit = draws.chosen(op.p)
    if len(hit) == 0:
        return
    whole = len(hit) == batch
    where = hit.to(canvas.images.device)
    x = canvas.images if whole else canvas.images[where]
    brightness, contrast, saturation = (factor[hit].to(x)[:, None, None, None] for factor in factors)
    x = (x * brightness).clamp(0, 1)
    x = torch.lerp(luma(x).mean(dim=(2, 3), keepdim=True).expand_as(x), x, contrast).clamp(0, 1)
    if x.shape[1] == 3:
        x = torch.lerp(luma(x).expand_as(x), x, saturation).clamp(0, 1)
        if op.hue > 0:
            x = shift_hue(x, hue[hit])
    canvas.images = x if whole else canvas.images.index_copy(0, where, x)


def _gray(canvas: _Canvas, op: Gray, draws: _Draws) -> None:
    hit = draws.chosen(op.p)
    if canvas.images.shape[1] == 1 or len(hit) == 0:
        return
    canvas.flush()
    where = hit.to(canvas.images.device)
    canvas.images = canvas.images.index_copy(0, where, luma(canvas.images[where]).expand(-1, 3, -1, -1))


def _blur(canvas: _Canvas, op: Blur, draws: _Draws) -> None:
    canvas.flush()
    channels, height = canvas.images.shape[1:3]
    side = canvas.size if canvas.out_size else height  # a smaller crop is blurred by as many of its pixels
    sigma = draws.uniform(*op.sigma) * (side / 224)
    hit = draws.chosen(op.p)
    if len(hit) == 0:
        return
    radius = max(1, math.ceil(3 * op.sigma[1] * side / 224))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernels = torch.exp(-0.5 * (offsets / sigma[hit, None].clamp(min=1e-3)) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).to(canvas.images)
    where = hit.to(canvas.images.device)
    x = canvas.images[where].flatten(0, 1)[None]  # (1, hit * C, H, W)
    weight = kernels.repeat_interleave(channels, 0)[:, None]  # (hit * C, 1, k)
    x = F.conv2d(F.pad(x, [radius] * 4, mode="reflect"), weight[..., None, :], groups=len(weight))
    x = F.conv2d(x, weight[..., :, None], groups=len(weight))
    canvas.images = canvas.images.index_copy(0, where, x[0].unflatten(0, (len(hit), channels)))


def _solarize(canvas: _Canvas, op: Solarize, draws: _Draws) -> None:
    canvas.flush()
    hit = draws.chosen(op.p)
    if len(hit) == 0:
        return
    where = hit.to(canvas.images.device)
    x = canvas.images[where]
    canvas.images = canvas.images.index_copy(0, where, torch.where(x >= op.threshold, 1 - x, x))


def _cutout(canvas: _Canvas, op: Cutout, draws: _Draws) -> None:
    canvas.flush()
    batch, _, height, width = canvas.images.shape
    side = max(1, round(op.size * height / 224))
    places = torch.arange(max(height, width), device=canvas.images.device)
    hole = torch.zeros(batch, height, width, dtype=torch.bool, device=canvas.images.device)
    for _ in range(op.holes):
        top = (draws.uniform(0, height).long() - side // 2).to(places.device)[:, None]
        left = (draws.uniform(0, width).long() - side // 2).to(places.device)[:, None]
        rows = (places[:height] >= top) & (places[:height] < top + side)  # (B, H)
        columns = (places[:width] >= left) & (places[:width] < left + side)  # (B, W)
        hole |= rows[:, :, None] & columns[:, None, :]
    mean = canvas.images.mean(dim=(2, 3), keepdim=True)
    canvas.images = torch.where(hole[:, None], mean, canvas.images)


_APPLY = {
    Flip: _flip,
    HalfTurn: _half_turn,
    QuarterTurn: _quarter_turn,
    Rotate: _rotate,
    Crop: _crop,
    Jitter: _jitter,
    Gray: _gray,
    Blur: _blur,
    Quadrant: _quadrant,
    Neighbour: _neighbour,
    Solarize: _solarize,
    Cutout: _cutout,
}


def _run(canvas: _Canvas, ops: Sequence[Op], draws: _Draws) -> None:
    for op in ops:
        _APPLY[type(op)](canvas, op, draws)  # type: ignore[operator]


def ready(images: Tensor) -> Tensor:
    """Normalised and in the order of bytes that networks are fastest with."""
    return normalise(images).contiguous(memory_format=torch.channels_last)


def build(
    images: Tensor,
    views: Views,
    size: int,
    generator: torch.Generator,
    finish: Callable[[Tensor], Tensor] = lambda images: images,
    places: Sequence[int] | None = None,
    batch: int = 0,
) -> list[View]:
    """The declared views of a batch.

    images: (B, C, H, W), float in [0, 1], on the device where the views are wanted. generator: on the CPU, so that
    every device sees the same draws. finish: made of every view's images at the end. Returns one View of
    (B, C, size, size) for each entry of `views.each` (smaller where a `Crop` has a share); where no `Crop` is declared,
    and the images have another size, the whole image is resized.
    places: where these images stand in a whole batch of `batch` images, whose draws they share; None: they are all.

    On the CPU a few images at a time are worked on from beginning to end: what an operation leaves is then still in the
    cache for the next one, and memory is not taken from and given back to the system all the time.
    """
    draws, count = _Draws(generator, batch or len(images)), len(images)
    piece = PIECE if images.device.type == "cpu" else count
    made = []
    for first in range(0, count, piece):
        rows = slice(first, min(first + piece, count))
        draws.begin(rows if places is None else list(places[rows]))
        made.append(_build(images[rows], views, size, draws, finish))
    if len(made) == 1:
        return made[0]
    return [
        View(*(torch.cat([getattr(part, name) for part in parts]) for name in ("images", "affine", "turns")))
        for parts in zip(*made, strict=True)
    ]


def _build(images: Tensor, views: Views, size: int, draws: _Draws, finish: Callable[[Tensor], Tensor]) -> list[View]:
    canvas = _Canvas(images, size)
    _run(canvas, views.shared, draws)
    built = []
    for ops in views.each:
        branch = canvas.copy()
        if branch.out_size is None and not any(isinstance(op, Crop) for op in ops) and images.shape[2:] != (size, size):
            branch.out_size, branch.sampling = size, True
        branch.turns = torch.zeros(len(images), dtype=torch.long)
        _run(branch, ops, draws)
        branch.flush()
        built.append(View(finish(branch.images), branch.affine[:, :2], branch.turns))
    return built
