"""Images as images: a sheet of data or samples as one PNG inside the page."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pofx.domain import Domain

GAP = 1  # pixels between two images


def is_picture(domain: Domain) -> bool:
    """Whether a row can be shown as an image: (H, W), (1, H, W) or (3, H, W)."""
    shape = domain.shape
    return not domain.is_table and (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)))


def sheet(x: NDArray[np.float64], domain: Domain, columns: int = 10, rows: int = 6) -> str:
    """The first rows of x as a sheet of images: a data URI of a PNG with transparent gaps."""
    return moving([laid_out(x, domain, columns, rows)])


def laid_out(x: NDArray[np.float64], domain: Domain, columns: int, rows: int) -> NDArray[np.uint8]:
    """The first rows of x side by side, gaps transparent: (H, W, 4)."""
    pixels = _bytes(x[: columns * rows], domain)
    height, width = pixels.shape[1:3]
    whole = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), dtype=np.uint8)
    for k, image in enumerate(pixels):
        top, left = k // columns * (height + GAP), k % columns * (width + GAP)
        whole[top : top + height, left : left + width] = image
    return whole


def moving(frames: Sequence[NDArray[np.uint8]], seconds: float = 0.12, rest: float = 2.0) -> str:
    """Frames (H, W, 4) again and again, with a rest at the last: the data URI of a PNG that moves; of one frame, of a still one."""
    from PIL import Image

    first, *others = [Image.fromarray(frame) for frame in frames]
    shown = [1000 * seconds] * len(others) + [1000 * rest]
    again: dict[str, Any] = {"save_all": True, "append_images": others, "duration": shown, "loop": 0, "blend": 0} if others else {}
    buffer = BytesIO()
    first.save(buffer, format="PNG", optimize=True, **again)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _bytes(x: NDArray[np.float64], domain: Domain) -> NDArray[np.uint8]:
    """Rows as RGBA images (N, H, W, 4), the domain's lowest value black and its highest white."""
    lower, upper = _range(x, domain)
    scaled = np.clip((np.nan_to_num(x, nan=lower) - lower) / (upper - lower or 1.0), 0, 1)
    images = scaled.reshape(-1, *domain.shape)
    colours = images[:, None] if images.ndim == 3 else images  # (N, C, H, W)
    rgb = np.broadcast_to(colours, (len(images), 3, *colours.shape[2:])).transpose(0, 2, 3, 1)
    return np.concatenate((np.rint(255 * rgb), np.full((*rgb.shape[:3], 1), 255.0)), axis=3).astype(np.uint8)


def _range(x: NDArray[np.float64], domain: Domain) -> tuple[float, float]:
    v = domain.variables[0]
    if np.isfinite(v.lower) and np.isfinite(v.upper):
        return float(v.lower), float(v.upper)
    return float(np.nanmin(x)), float(np.nanmax(x))
