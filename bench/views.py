"""Views of images: declared as data, built in batches on the device.

A method declares `Views(shared, each)`; the loop builds them. Geometry is composed into one affine map and sampled once
(linearly, zero fill); flips and quarter turns are exact index operations. Every view carries the affine map back to its
source, so that dense methods can bring features into register.

Images and volumes share all this: (B, C, *S) with S = (height, width) or (depth, height, width), and coordinates the
other way round, (x, y) or (x, y, z), each in [-1, 1]. Turns are made in the plane of a volume's slices.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.spec import BenchError

PIECE = 4  # images of a batch that are worked on together on the CPU

# --------------------------------------------------------------------------------------------------------- declarations


@dataclass(frozen=True)
class Flip:
    """Mirror left-right with probability `horizontal`, along every other axis with probability `vertical`; exact."""

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
    """Rotate about the centre by an angle uniform in [-degrees, degrees]; a volume in each of its planes in turn."""

    degrees: float


@dataclass(frozen=True)
class Crop:
    """Random resized crop: an area share and an aspect ratio (log-uniform), resized to `share` of the views' side.

    A side is rounded to a multiple of 16 px and is at least 32 px. Of a volume a share of its voxels, every side longer
    or shorter than that of the cube by the root of such a ratio.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    share: float = 1.0


@dataclass(frozen=True)
class Quadrant:
    """Go on with one quadrant, enlarged towards the others by `overlap` of the image's side; crops stay inside.

    Of images alone: a volume has octants.
    """

    row: int  # 0 or 1
    column: int  # 0 or 1
    overlap: float = 0.3


@dataclass(frozen=True)
class Neighbour:
    """Move a shared crop by its own side along an axis, to one of the sides where most of it stays in the image."""


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

    images: (B, C, *S). affine: (B, D, D + 1), maps (x, y[, z], 1) of the view to the source's (x, y[, z]).
    turns: (B,) quarter turns (counter-clockwise) made last, after everything that was sampled.
    maps: (B, K, *S), what was known of the images beside them, cut and turned alike; None: nothing was.
    """

    images: Tensor
    affine: Tensor
    turns: Tensor
    maps: Tensor | None = None

    def unturn(self, maps: Tensor) -> Tensor:
        """Undoes the view's last exact turns on maps (B, K, *S) of any resolution."""
        return turn(maps, (4 - self.turns) % 4)


def turn(images: Tensor, turns: Tensor) -> Tensor:
    """Turns each image of (B, C, *S) by its own quarter turns (counter-clockwise) in the plane of its last two axes.

    Those are equally long unless all turns are even.
    """
    out = images
    for k in (1, 2, 3):
        chosen = (turns == k).nonzero().flatten()
        if len(chosen):
            out = out.index_copy(
                0, chosen.to(images.device), torch.rot90(images[chosen.to(images.device)], k, (-2, -1))
            )
    return out


@dataclass(frozen=True)
class Batch:
    """One step's views and where training stands."""

    views: list[View]  # each (B, C, *S), normalised
    index: Tensor  # (B,) place of every image in the corpus
    progress: float  # 0 at the first step, towards 1
    stage: int  # which of the recipe's stages
    labels: Tensor | None = None  # (B,) image-level grades, where the method needs them
    pairs: list[View] = field(default_factory=list)  # views of the second modality, where the method needs it
    turn: int = 0  # which of the recipe's turns; the views are the same in all turns of a step
    maps: Mapping[str, list[Tensor]] = field(default_factory=dict)  # side data by name: per view (B, K, *S), as made


MEAN_STD = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def normalise(images: Tensor) -> Tensor:
    """(B, C, *S) in [0, 1] -> ImageNet statistics for three channels, mean and deviation 0.5 for any other number."""
    channels = images.shape[1]
    mean, std = MEAN_STD.get(channels, ((0.5,) * channels, (0.5,) * channels))
    shape = (1, channels, *[1] * (images.dim() - 2))
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


class _Canvas:
    """A batch on its way through a pipeline: pixels, what is still to be sampled, and the way back.

    maps: what goes wherever the pixels go, and keeps its values: (B, K, *S), or None.
    """

    def __init__(self, images: Tensor, size: int, maps: Tensor | None = None) -> None:
        self.images, self.size, self.maps = images, size, maps
        self.dims, batch = images.dim() - 2, len(images)
        self.pending = self.identity(batch)  # new frame -> current pixels
        self.sampling = False
        self.out_size: int | None = None
        self.affine = self.identity(batch)  # current pixels -> source
        self.turns = torch.zeros(batch, dtype=torch.long)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels once everything is sampled."""
        return (self.out_size,) * self.dims if self.out_size else tuple(self.images.shape[2:])

    def identity(self, batch: int) -> Tensor:
        """(B, D + 1, D + 1)"""
        return torch.eye(self.dims + 1, dtype=torch.float64).repeat(batch, 1, 1)

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
        self.move(lambda pixels: sample(pixels, self.pending[:, : self.dims], self.shape))
        self.affine = self.affine @ self.pending
        self.pending, self.sampling = self.identity(len(self.images)), False

    def move(self, where: Callable[[Tensor], Tensor]) -> None:
        """Moves the pixels, and what is known of them."""
        self.images = where(self.images)
        if self.maps is not None:
            self.maps = where(self.maps)

    def exact(self, matrix: Tensor) -> None:
        self.affine = self.affine @ matrix


def sample(images: Tensor, affine: Tensor, size: tuple[int, ...], mode: str = "bilinear") -> Tensor:
    """Images (B, C, *S) read through (B, D, D + 1) maps from the new frame to theirs, zero outside: (B, C, *size)."""
    affine = affine.to(images)
    if len(size) == 3:
        grid = F.affine_grid(affine, [len(images), 1, *size], align_corners=False)
    else:
        grid = _grid(affine, size)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _grid(affine: Tensor, size: tuple[int, ...]) -> Tensor:
    """What F.affine_grid gives of an image, (B, H, W, 2), built from a row and a column: an eighth of its time."""
    down, across = ((2 * torch.arange(side, device=affine.device) + 1) / side - 1 for side in size)
    grid = affine.new_empty(len(affine), *size, 2)
    for axis in (0, 1):
        columns = affine[:, axis, 0, None] * across  # (B, W)
        rows = affine[:, axis, 1, None] * down + affine[:, axis, 2, None]  # (B, H)
        torch.add(columns[:, None, :], rows[:, :, None], out=grid[..., axis])
    return grid


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
    shares = [draws.share() for _ in range(canvas.dims)]
    canvas.flush()
    for axis, share in enumerate(shares):
        hit = share < (op.vertical if axis else op.horizontal)
        if hit.any():
            where = hit.nonzero().flatten().to(canvas.images.device)
            canvas.move(functools.partial(_flipped, where=where, dim=canvas.dims + 1 - axis))
            matrix = canvas.identity(batch)
            matrix[:, axis, axis] = torch.where(hit, -1.0, 1.0).double()
            canvas.exact(matrix)


def _flipped(pixels: Tensor, where: Tensor, dim: int) -> Tensor:
    return pixels.index_copy(0, where, pixels[where].flip(dim))


def _turn_canvas(canvas: _Canvas, turns: Tensor) -> None:
    canvas.flush()
    canvas.move(lambda pixels: turn(pixels, turns))
    canvas.turns = (canvas.turns + turns) % 4
    angle = turns.double() * (math.pi / 2)
    matrix = canvas.identity(len(turns))
    matrix[:, 0, 0] = matrix[:, 1, 1] = torch.cos(angle).round()
    matrix[:, 0, 1] = -torch.sin(angle).round()
    matrix[:, 1, 0] = torch.sin(angle).round()
    canvas.exact(matrix)


def _half_turn(canvas: _Canvas, op: HalfTurn, draws: _Draws) -> None:
    _turn_canvas(canvas, 2 * (draws.share() < op.p).long())


def _quarter_turn(canvas: _Canvas, op: QuarterTurn, draws: _Draws) -> None:
    _turn_canvas(canvas, draws.below(4))


def _rotate(canvas: _Canvas, op: Rotate, draws: _Draws) -> None:
    sides = canvas.shape[::-1]  # of x, y(, z)
    for one, other in itertools.combinations(range(canvas.dims), 2):
        angle = draws.uniform(-op.degrees, op.degrees) * (math.pi / 180)
        matrix = canvas.identity(len(angle))
        matrix[:, one, one] = matrix[:, other, other] = torch.cos(angle)
        matrix[:, one, other] = torch.sin(angle) * (sides[other] / sides[one])
        matrix[:, other, one] = -torch.sin(angle) * (sides[one] / sides[other])
        canvas.compose(matrix)


def _crop(canvas: _Canvas, op: Crop, draws: _Draws) -> None:
    """As torchvision's RandomResizedCrop, but a box that does not fit is clipped to the image, not drawn again."""
    matrix = canvas.identity(len(canvas.images))
    for axis, side in enumerate(_crop_sides(canvas.dims, op, draws)):
        matrix[:, axis, axis] = side
    for axis in range(canvas.dims):
        matrix[:, axis, -1] = draws.uniform(-1.0, 1.0) * (1.0 - matrix[:, axis, axis])
    canvas.compose(matrix)
    canvas.out_size = canvas.size if op.share == 1 else max(32, 16 * round(canvas.size * op.share / 16))


def _crop_sides(dims: int, op: Crop, draws: _Draws) -> list[Tensor]:
    """Width, height and of a volume depth, as shares of the whole: (B,) each."""
    share = draws.uniform(*op.scale)
    if dims == 2:
        ratio = draws.uniform(math.log(op.ratio[0]), math.log(op.ratio[1])).exp()
        return [(share * ratio).sqrt().clamp(max=1.0), (share / ratio).sqrt().clamp(max=1.0)]
    logs = [draws.uniform(math.log(op.ratio[0]) / 2, math.log(op.ratio[1]) / 2) for _ in range(dims)]
    mean = torch.stack(logs).mean(0)
    return [(share ** (1 / dims) * (log - mean).exp()).clamp(max=1.0) for log in logs]


def _quadrant(canvas: _Canvas, op: Quadrant, draws: _Draws) -> None:
    if canvas.dims != 2:
        raise BenchError("a view of a quadrant is of an image: for volumes declare dims=(2,), or views without it")
    side = 0.5 + op.overlap  # of the whole side
    matrix = canvas.identity(len(canvas.images))
    matrix[:, 0, 0] = matrix[:, 1, 1] = side
    matrix[:, 0, 2] = (1 - side) * (1 if op.column else -1)
    matrix[:, 1, 2] = (1 - side) * (1 if op.row else -1)
    canvas.compose(matrix)


def _neighbour(canvas: _Canvas, op: Neighbour, draws: _Draws) -> None:
    dims = canvas.dims
    steps = torch.eye(dims, dtype=torch.float64)
    moves = torch.stack([-2 * steps, 2 * steps], dim=1).flatten(0, 1)  # (2 D, D) in windows' frames
    linear, centre = canvas.pending[:, :dims, :dims], canvas.pending[:, :dims, dims]
    moved = centre[:, None] + torch.einsum("bij,mj->bmi", linear, moves)  # (B, 2 D, D) new centres
    reach = linear.abs().sum(2)[:, None]  # (B, 1, D) half sides of the windows
    outside = (moved.abs() + reach - 1).clamp(min=0).amax(2)  # (B, 2 D)
    room = outside <= outside.amin(1, keepdim=True) + 1e-9
    chance = draws.share(room.shape[1], dtype=torch.float64) + room.double()
    matrix = canvas.identity(len(canvas.images))
    matrix[:, :dims, dims] = moves[chance.argmax(1)]
    canvas.compose(matrix)


_LUMA = (0.299, 0.587, 0.114)


def luma(images: Tensor) -> Tensor:
    """ITU-R 601 luma of (B, 3, *S), or the one channel as it is: (B, 1, *S)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _beside(values: Tensor, images: Tensor) -> Tensor:
    """One value of each image, (B,), against images (B, ...)."""
    return values.view(-1, *[1] * (images.dim() - 1))


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotates the hue of RGB images (B, 3, *S) in [0, 1] by `shift` (B,) turns in HSV space, without a map by cases.

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
    hue += 6 * _beside(shift.to(images), hue)
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
    brightness, contrast, saturation = (_beside(factor[hit].to(x), x) for factor in factors)
    x = (x * brightness).clamp(0, 1)
    x = torch.lerp(luma(x).mean(dim=tuple(range(2, x.dim())), keepdim=True).expand_as(x), x, contrast).clamp(0, 1)
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
    x = canvas.images[where]
    canvas.images = canvas.images.index_copy(0, where, luma(x).expand_as(x))


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}


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
    x = canvas.images[where].flatten(0, 1)[None]  # (1, hit * C, *S)
    weight = kernels.repeat_interleave(channels, 0)[:, None]  # (hit * C, 1, k)
    x = F.pad(x, [radius] * (2 * canvas.dims), mode="reflect")
    for axis in reversed(range(canvas.dims)):
        along = [1] * canvas.dims
        along[axis] = weight.shape[2]
        x = _CONVOLUTIONS[canvas.dims](x, weight.view(len(weight), 1, *along), groups=len(weight))
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
    batch, _, *shape = canvas.images.shape
    side = max(1, round(op.size * shape[0] / 224))
    places = torch.arange(max(shape), device=canvas.images.device)
    hole = torch.zeros(batch, *shape, dtype=torch.bool, device=canvas.images.device)
    for _ in range(op.holes):
        inside = torch.ones(batch, *[1] * len(shape), dtype=torch.bool, device=canvas.images.device)
        for axis, length in enumerate(shape):
            first = (draws.uniform(0, length).long() - side // 2).to(places.device)[:, None]
            within = (places[:length] >= first) & (places[:length] < first + side)  # (B, length)
            inside = inside & within.view(batch, *(length if at == axis else 1 for at in range(len(shape))))
        hole |= inside
    mean = canvas.images.mean(dim=tuple(range(2, canvas.images.dim())), keepdim=True)
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
    order = torch.channels_last if images.dim() == 4 else torch.channels_last_3d
    return normalise(images).contiguous(memory_format=order)


def build(
    images: Tensor,
    views: Views,
    size: int,
    generator: torch.Generator,
    finish: Callable[[Tensor], Tensor] = lambda images: images,
    places: Sequence[int] | None = None,
    batch: int = 0,
    maps: Tensor | None = None,
) -> list[View]:
    """The declared views of a batch.

    images: (B, C, *S), float in [0, 1], on the device where the views are wanted. generator: on the CPU, so that
    every device sees the same draws. finish: made of every view's images at the end. Returns one View of
    (B, C, size, size[, size]) for each entry of `views.each` (smaller where a `Crop` has a share); where no `Crop` is
    declared, and the images have another size, the whole image is resized.
    places: where these images stand in a whole batch of `batch` images, whose draws they share; None: they are all.
    maps: (B, K, *S), what is known of the images beside them: cut and turned alike, whatever happens to colours.

    On the CPU a few images at a time are worked on from beginning to end: what an operation leaves is then still in the
    cache for the next one, and memory is not taken from and given back to the system all the time.
    """
    draws, count = _Draws(generator, batch or len(images)), len(images)
    piece = PIECE if images.device.type == "cpu" else count
    made = []
    for first in range(0, count, piece):
        rows = slice(first, min(first + piece, count))
        draws.begin(rows if places is None else list(places[rows]))
        canvas = _Canvas(images[rows], size, None if maps is None else maps[rows])
        made.append(_build(canvas, views, draws, finish))
    if len(made) == 1:
        return made[0]
    names = ("images", "affine", "turns") if maps is None else ("images", "affine", "turns", "maps")
    return [
        View(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
        for parts in zip(*made, strict=True)
    ]


def _build(canvas: _Canvas, views: Views, draws: _Draws, finish: Callable[[Tensor], Tensor]) -> list[View]:
    size, images = canvas.size, canvas.images
    _run(canvas, views.shared, draws)
    built = []
    for ops in views.each:
        branch = canvas.copy()
        whole = branch.out_size is None and not any(isinstance(op, Crop) for op in ops)
        if whole and images.shape[2:] != (size,) * canvas.dims:
            branch.out_size, branch.sampling = size, True
        branch.turns = torch.zeros(len(images), dtype=torch.long)
        _run(branch, ops, draws)
        branch.flush()
        built.append(View(finish(branch.images), branch.affine[:, : canvas.dims], branch.turns, branch.maps))
    return built
