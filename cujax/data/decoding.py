"""Image files as arrays: decoding of one file, and files that are decoded when needed."""

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
    """Raised for an image that cannot be used."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, `[n, H, W, C]` uint8 when read.

    Attributes:
        paths: `[n]` str.
        image_shape: `(H, W, C)` of each image.
        resized: Whether images of other sizes are scaled and cropped to it instead of rejected.
        background: The background colour of transparent images.
        digests: `[n]` str, the digest of each image's pixels; None if unknown.
    """

    paths: np.ndarray
    image_shape: tuple[int, int, int]
    resized: bool
    background: str = "white"
    digests: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of all images together."""
        return (len(self.paths), *self.image_shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the images when read."""
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
            raise ValueError(
                f"image {path} was readable when the run began, but is not readable now ({error}); restore it and run the "
                "same command again."
            ) from error
        if pixels.shape != self.image_shape:
            raise ValueError(
                f"image {path} had the shape {self.image_shape} when the run began, but has {pixels.shape} now; restore it "
                "and run the same command again."
            )
        return pixels


def check_background(background: str) -> None:
    """Raises ValueError if a text does not name a colour."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(background)
    except ValueError as error:
        raise ValueError(
            f"data.background must be a colour such as white, black or #808080, but is {background!r}."
        ) from error


def decode(content: bytes, size: tuple[int, int] | None, background: str = "white") -> np.ndarray:
    """Decodes the bytes of an image file to `[H, W, C]` uint8, as a viewer shows it; C is 1 or 3.

    The image is rotated according to its EXIF orientation, placed on a background if it is transparent, and scaled to 8 bits
    if it is 16-bit grey. Other colour spaces are converted to RGB.

    Args:
        content: The bytes of the file.
        size: Height and width to scale to, with a centre crop. None: no scaling.
        background: A colour by name or as #rrggbb.

    Raises:
        BadImageError: if it cannot be decoded completely.
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
        raise BadImageError(f"damaged or not an image ({type(error).__name__}: {error})") from error
    if size is not None:
        converted = ImageOps.fit(converted, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(converted)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _eight_bits(image: "Image") -> "Image":
    """Scales 16-bit grey images to 8 bits; leaves other images unchanged."""
    from PIL import Image

    if image.mode == "F":
        raise BadImageError("its pixels are floating-point numbers, whose range is not known; save it with 8 or 16 bits")
    if image.mode not in _SIXTEEN_BITS:
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise BadImageError(f"its pixels go from {values.min()} to {values.max()}; 8 or 16 bits per channel are needed")
    return Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))


def _opaque(image: "Image", background: str) -> "Image":
    """Places a transparent image on a background; the result is grey if both are."""
    from PIL import Image, ImageColor

    colour = ImageColor.getrgb(background)[:3]
    laid = Image.new("RGBA", image.size, (*colour, 255))
    laid.alpha_composite(image.convert("RGBA"))
    is_grey = image.mode in _GREY_MODES and len(set(colour)) == 1
    return laid.convert("L" if is_grey else "RGB")
