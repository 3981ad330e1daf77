"""Every image file becomes ``uint8 (H, W, 3)`` RGB, or an error that says why not. Nothing is repaired or replaced.

The format is found from the content, never from the extension. EXIF orientation is applied. Transparent pixels are
laid over white, the background of a bright-field slide. 16-bit grey is scaled to 8 bits over its full range. CMYK is
converted by the plain formula (255-C)(255-K)/255; embedded colour profiles are not applied.
A JPEG with damaged data in its middle cannot be told from a sound one by libjpeg; one that ends early can, and is.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from wbcrepro.errors import WbcreproError

VERSION = 2
"""Raise it when a file would decode to other pixels or another verdict: cached verdicts are then made anew."""

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 64_000_000
"""Larger images are refused before they are unpacked (a few kilobytes can unpack to gigabytes)."""

_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class DecodeError(WbcreproError):
    """An image file that cannot be decoded faithfully; the message is the reason shown for its quarantine."""

    exit_code = 3


@dataclass(frozen=True)
class Decoded:
    """Pixels ``uint8 (H, W, 3)`` RGB, with the mode and format that the file had."""

    pixels: np.ndarray
    mode: str
    format: str


def decode(data: bytes) -> Decoded:
    """Decode the bytes of one image file completely; a file that ends early is an error.

    :raises DecodeError: empty, unknown or truncated file, too many pixels or pages, no defined 8-bit RGB meaning
    """
    if not data:
        raise DecodeError("empty file")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a library that sets it would make half images pass silently
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError(f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS}")
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # a JPEG of some telephones, with previews as further frames
                raise DecodeError(f"{pages} pages in one file; save the one that is meant on its own")
            mode, form = image.mode, image.format or ""
            image.load()
            return Decoded(_to_rgb(_upright(image), form), mode, form)
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DecodeError("not a JPEG, PNG, BMP, TIFF or WebP image") from None
    except Image.DecompressionBombError as error:
        raise DecodeError(f"more than the limit of {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's readers raise what they meet: OSError, SyntaxError, struct.error, ...
        raise DecodeError(f"damaged: {str(error) or type(error).__name__}") from error


def _upright(image: Image.Image) -> Image.Image:
    rotation = _ROTATIONS.get(image.getexif().get(0x0112))
    return image.transpose(rotation) if rotation is not None else image


def _to_rgb(image: Image.Image, form: str) -> np.ndarray:
    mode = image.mode
    if mode == "F" or (mode == "I" and form != "PNG"):
        raise DecodeError(f"mode {mode}: 32-bit values have no defined range; save as 8 or 16 bits")
    if mode == "LAB":
        raise DecodeError("mode LAB; save as RGB")
    if mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64)
        if 0 < grey.max() < 4096:
            raise DecodeError("16-bit file with values below 4096 (8 or 12 bits?); rescale to the full range")
        return np.repeat(np.round(grey / 257).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if "A" in mode or "a" in mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, layer)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image, dtype=np.uint8)
