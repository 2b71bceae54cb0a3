"""How far a picture is from another of the same size."""

import math
from collections.abc import Callable
from io import BytesIO

import numpy  # type: ignore[import-not-found,unused-ignore]
from PIL import Image, ImageChops, ImageStat
from skimage.metrics import structural_similarity
from ssimulacra2 import compute_ssimulacra2  # type: ignore[import-not-found,unused-ignore]

Measure = Callable[[Image.Image, Image.Image], float]

SAME_DB = 99.0
"""The PSNR of equal pictures, which has no finite value."""


def psnr(reference: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio over all channels, in dB.

    Of RGBA the lowest of three: alpha, and the pictures on black and on white, where hidden colours do not count.
    """
    if reference.mode != "RGBA":
        return _psnr(reference, other)
    on_ground = [_psnr(_on(reference, ground), _on(other, ground)) for ground in ("black", "white")]
    return min(_psnr(reference.getchannel("A"), other.getchannel("A")), *on_ground)


def _psnr(reference: Image.Image, other: Image.Image) -> float:
    roots = ImageStat.Stat(ImageChops.difference(reference, other)).rms
    mean_square = math.fsum(root * root for root in roots) / len(roots)
    return 10 * math.log10(255**2 / mean_square) if mean_square else SAME_DB


def _on(picture: Image.Image, ground: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture).convert("RGB")


def ssim(reference: Image.Image, other: Image.Image) -> float:
    """Structural similarity of the luma with Wang's Gaussian window (σ 1.5), 0 to 1."""
    planes = [numpy.asarray(picture.convert("L"), dtype=numpy.float32) for picture in (reference, other)]
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(*planes, **options))  # type: ignore[no-untyped-call,unused-ignore]


def ssimulacra2(reference: Image.Image, other: Image.Image) -> float:
    """SSIMULACRA2, the nearest to what people say, colour included: 70 is high quality, 90 visually lossless."""
    return float(compute_ssimulacra2(_as_file(reference), _as_file(other)))


def _as_file(picture: Image.Image) -> BytesIO:
    """In memory, which the package reads like a file's path."""
    buffer = BytesIO()
    picture.save(buffer, "PPM")
    buffer.seek(0)
    return buffer


MEASURES: dict[str, Measure] = {"SSIMULACRA2": ssimulacra2, "SSIM": ssim, "PSNR": psnr}
