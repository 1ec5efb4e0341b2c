"""Image files as arrays: how one is decoded, and files that are decoded when they are needed."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY_MODES = ("1", "L", "LA", "La")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class BadImageError(ValueError):
    """An image that cannot be used."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, `[n, H, W, C]` uint8 when read.

    Attributes:
        paths: `[n]` str.
        image_shape: `(H, W, C)` of each.
        resized: Whether images of other sizes are scaled and cropped to it, rather than refused.
        background: What shows through where they are transparent.
        digests: `[n]` str, the digest of the pixels of each; None where not known.
    """

    paths: np.ndarray
    image_shape: tuple[int, int, int]
    resized: bool
    background: str = "white"
    digests: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of them all."""
        return (len(self.paths), *self.image_shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what is read."""
        return np.dtype(np.uint8)

    def __getitem__(self, rows: np.ndarray) -> "ImageFiles":
        return replace(self, paths=self.paths[rows], digests=None if self.digests is None else self.digests[rows])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at `rows` (`[k]` integer): `[k, H, W, C]` uint8.

        Raises:
            ValueError: if a file was damaged since it was first read.
        """
        return np.stack([self._read_one(path) for path in self.paths[rows].tolist()])

    def _read_one(self, path: str) -> np.ndarray:
        size = self.image_shape[:2] if self.resized else None
        try:
            pixels = decode(Path(path).read_bytes(), size, self.background)
        except (OSError, BadImageError) as error:
            raise ValueError(f"image {path} was readable when the run began, and is not any more: {error}") from error
        if pixels.shape != self.image_shape:
            raise ValueError(f"image {path} was {self.image_shape} when the run began, and is {pixels.shape} now.")
        return pixels


def check_background(background: str) -> None:
    """Raises ValueError if a text names no colour."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(background)
    except ValueError as error:
        raise ValueError(
            f"data.background must be a colour such as white, black or #808080, but is {background!r}."
        ) from error


def decode(content: bytes, size: tuple[int, int] | None, background: str = "white") -> np.ndarray:
    """`[H, W, C]` uint8 of an image file's bytes, as a viewer shows it; C is 1 or 3.

    It is turned as its EXIF orientation says, laid on a background where it is transparent, and scaled to 8 bits where it
    is grey with 16; other colour spaces become RGB.

    Args:
        content: The file.
        size: Height and width to scale to; the middle is cut out. None: as it is.
        background: A colour by name or as #rrggbb.

    Raises:
        BadImageError: if it cannot be decoded whole.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = _eight_bits(ImageOps.exif_transpose(opened))
            if image.has_transparency_data:
                converted = _opaque(image, background)
            else:
                converted = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    except BadImageError:
        raise
    except Exception as error:  # Pillow raises many types for a damaged file
        raise BadImageError(f"damaged or no image ({type(error).__name__}: {error})") from error
    if size is not None:
        converted = ImageOps.fit(converted, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(converted)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _eight_bits(image: "Image") -> "Image":
    """Grey with 16 bits scaled to 8; other images as they are."""
    from PIL import Image

    if image.mode == "F":
        raise BadImageError("its pixels are floating-point numbers, whose range is not known; save it with 8 or 16 bits")
    if image.mode not in _SIXTEEN_BITS:
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise BadImageError(f"its pixels go from {values.min()} to {values.max()}; 8 or 16 bits a channel are needed")
    return Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))


def _opaque(image: "Image", background: str) -> "Image":
    """A transparent image laid on a background; grey where both are."""
    from PIL import Image, ImageColor

    colour = ImageColor.getrgb(background)[:3]
    laid = Image.new("RGBA", image.size, (*colour, 255))
    laid.alpha_composite(image.convert("RGBA"))
    is_grey = image.mode in _GREY_MODES and len(set(colour)) == 1
    return laid.convert("L" if is_grey else "RGB")
