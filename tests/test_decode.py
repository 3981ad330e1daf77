"""Every oddity that image folders hold: decoded to the right pixels, or refused with a reason."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from wbcrepro.data import decode as module
from wbcrepro.data.decode import DecodeError, decode


@pytest.fixture
def pixels():
    """A smooth colour image whose corners differ, so that a turn or a swap of channels shows."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([4 * x, 6 * y, 255 - 4 * x], axis=2).astype(np.uint8)


def encoded(image, form, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form, options", [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}),
                                           ("TIFF", {"compression": "tiff_lzw"})])  # fmt: skip
def test_lossless_formats_give_the_same_pixels(pixels, form, options):
    decoded = decode(encoded(pixels, form, **options))
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags["C_CONTIGUOUS"] and decoded.pixels.flags["WRITEABLE"]
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert (decoded.mode, decoded.format) == ("RGB", form)


def test_jpeg_is_close(pixels):
    decoded = decode(encoded(pixels, "JPEG", quality=95))
    assert np.abs(decoded.pixels.astype(int) - pixels).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(pixels, orientation):
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, 3)}
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](pixels)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(stored, "PNG", exif=exif)).pixels, pixels)
    assert decode(encoded(stored, "JPEG", exif=exif)).pixels.shape == pixels.shape


def test_grey_and_one_bit():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = decode(encoded(grey, "PNG"))
    np.testing.assert_array_equal(decoded.pixels, np.repeat(grey[..., None], 3, axis=2))
    bits = decode(encoded(Image.fromarray(grey).convert("1", dither=Image.Dither.NONE), "PNG"))
    np.testing.assert_array_equal(bits.pixels[..., 0], np.where(grey >= 128, 255, 0))


def test_palette_with_and_without_transparency(pixels):
    palette = Image.fromarray(pixels).quantize(64)
    decoded = decode(encoded(palette, "PNG"))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(palette.convert("RGB")))
    assert decoded.mode == "P"
    index = palette.getpixel((0, 0))
    clear = decode(encoded(palette, "PNG", transparency=index)).pixels
    here = np.asarray(palette) == index
    assert (clear[here] == 255).all() and (clear[~here] == decoded.pixels[~here]).all()


def test_transparency_is_laid_over_white(pixels):
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:, :20], alpha[:, 20:40] = 0, 128
    decoded = decode(encoded(np.dstack([pixels, alpha]), "PNG")).pixels
    weight = alpha[..., None] / 255
    np.testing.assert_allclose(decoded, pixels * weight + 255 * (1 - weight), atol=1)
    assert (decoded[:, :20] == 255).all()
    grey = decode(encoded(Image.fromarray(pixels).convert("L"), "PNG", transparency=0)).pixels
    assert (grey[np.asarray(Image.fromarray(pixels).convert("L")) == 0] == 255).all()


def test_cmyk(pixels):
    cmyk = np.zeros((40, 60, 4), np.uint8)
    cmyk[..., 0], cmyk[..., 3] = 200, 51
    expected = np.array([(255 - 200) * (255 - 51) / 255, 255 - 51, 255 - 51])
    image = Image.fromarray(cmyk, "CMYK")
    for form, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
        decoded = decode(encoded(image, form, **options))
        assert decoded.mode == "CMYK"
        np.testing.assert_allclose(decoded.pixels, np.broadcast_to(expected, (40, 60, 3)), atol=2)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_uses_its_full_range(form):
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    decoded = decode(encoded(deep, form))
    np.testing.assert_array_equal(decoded.pixels[..., 1], np.round(deep / 257).astype(np.uint8))
    assert decoded.mode.startswith("I")


@pytest.mark.parametrize("largest", [1, 255, 256, 4095])
def test_8_or_12_bit_values_in_16_bit_files_are_refused_rather_than_shown_black(largest):
    with pytest.raises(DecodeError, match="8 or 12 bits"):
        decode(encoded(np.linspace(0, largest, 64).reshape(8, 8).astype(np.uint16), "PNG"))
    assert (decode(encoded(np.zeros((8, 8), np.uint16), "PNG")).pixels == 0).all(), "black that is meant"


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_range_are_refused(dtype):
    with pytest.raises(DecodeError, match="32-bit"):
        decode(encoded(np.ones((8, 8), dtype), "TIFF"))


def test_several_pages_are_refused(pixels):
    other = Image.fromarray(255 - pixels)
    with pytest.raises(DecodeError, match="2 pages"):
        decode(encoded(pixels, "TIFF", save_all=True, append_images=[other]))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.9])
def test_truncated_files_are_refused(form, kept):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    data = encoded(noise, form)
    with pytest.raises(DecodeError):
        decode(data[: int(kept * len(data))])


def test_truncation_is_refused_even_where_a_library_allowed_it(pixels, monkeypatch):
    monkeypatch.setattr(module.ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(pixels, "JPEG")
    with pytest.raises(DecodeError):
        decode(data[: len(data) * 2 // 3])


def test_jpeg_that_lacks_only_its_last_bytes_is_refused():
    noise = np.random.default_rng(1).integers(0, 256, (363, 360, 3), dtype=np.uint8)
    with pytest.raises(DecodeError):
        decode(encoded(noise, "JPEG")[:-200])


@pytest.mark.parametrize(
    "data, reason",
    [(b"", "empty"), (b"ID,labels\n1,BA\n", "not a JPEG"), (b"GIF89a" + 20 * b"\0", "not a JPEG"),
     (b"\xff\xd8\xff\xe0" + 50 * b"x", "not a JPEG|damaged")],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_the_reason(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode(data)


def test_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    data = encoded(Image.new("1", (20000, 20000)), "PNG")
    assert len(data) < 200_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was unpacked"))
    with warnings.catch_warnings(), pytest.raises(DecodeError, match="limit"):
        warnings.simplefilter("ignore")
        decode(data)


def test_noise_in_every_byte_never_escapes_as_another_error(pixels):
    """Damaged files may decode or be refused, but nothing other than DecodeError may come out."""
    generator = np.random.default_rng(7)
    for form in ("JPEG", "PNG", "BMP", "TIFF", "WEBP"):
        clean = np.frombuffer(encoded(pixels, form), np.uint8)
        for _ in range(60):
            data = clean.copy()
            where = generator.integers(0, min(len(data), 200), 4)
            data[where] = generator.integers(0, 256, 4)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert decode(data.tobytes()).pixels.ndim == 3
            except DecodeError as error:
                assert str(error)
