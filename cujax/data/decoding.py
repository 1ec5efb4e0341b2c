"""Image files as arrays: how one is decoded, and files that are decoded when they are needed."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_GREY_MODES = ("1", "L", "LA")


_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")


class BadImageError(ValueError):
    """An image that cannot be used."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, `[n, H, W, C]` uint8 when read.

    Attributes:
        paths: `[n]` str.
        image_shape: `(H, W, C)` of each.
        resized: Whether images of other sizes are scaled and cropped to it, rather than refused.
    """

    paths: np.ndarray
    image_shape: tuple[int, int, int]
    resized: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of them all."""
        return (len(self.paths), *self.image_shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what is read."""
        return np.dtype(np.uint8)

    def __getitem__(self, rows: np.ndarray) -> "ImageFiles":
        return ImageFiles(self.paths[rows], self.image_shape, self.resized)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at `rows` (`[k]` integer): `[k, H, W, C]` uint8.

        Raises:
            ValueError: if a file was damaged since it was first read.
        """
        return np.stack([self._read_one(path) for path in self.paths[rows].tolist()])

    def _read_one(self, path: str) -> np.ndarray:
        size = self.image_shape[:2] if self.resized else None
        try:
            pixels = decode(Path(path).read_bytes(), size)
        except (OSError, BadImageError) as error:
            raise ValueError(f"image {path} was readable when the run began, and is not any more: {error}") from error
        if pixels.shape != self.image_shape:
            raise ValueError(f"image {path} was {self.image_shape} when the run began, and is {pixels.shape} now.")
        return pixels


def decode(content: bytes, size: tuple[int, int] | None) -> np.ndarray:
    """`[H, W, C]` uint8 of an image file's bytes; C is 1 or 3.

    Raises:
        BadImageError: if it cannot be decoded whole, or does not have 8 bits a channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode in _WIDE_MODES:
                raise BadImageError(f"its pixels are of mode {image.mode}; 8 bits a channel are needed")
            converted = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    except BadImageError:
        raise
    except Exception as error:  # Pillow raises many types for a damaged file
        raise BadImageError(f"damaged or no image ({type(error).__name__}: {error})") from error
    if size is not None:
        converted = ImageOps.fit(converted, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(converted)
    return pixels[..., None] if pixels.ndim == 2 else pixels
