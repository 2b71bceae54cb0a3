"""The curves as a picture: bytes against SSIMULACRA2, one line for each encoder."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes  # type: ignore[import-not-found,unused-ignore]
from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]

from benchmarks.quality.encoders import AVIF_6, AVIF_8, METHOD_4, PRESENT, SHARP_YUV, Encoder
from benchmarks.quality.encoding import DECIDING, Rendition

# Okabe and Ito's colours: told apart by colour-blind readers as well. Method 5 lies on method 6.
_STYLES: dict[Encoder, str] = {
    PRESENT: "#0072b2",
    METHOD_4: "#56b4e9",
    SHARP_YUV: "#009e73",
    AVIF_6: "#d55e00",
    AVIF_8: "#e69f00",
}


def draw(renditions: Sequence[Rendition], present_setting: int, path: Path) -> None:
    """Writes a PNG with one panel for each size; means over the pictures, setting by setting."""
    sizes = list(dict.fromkeys(each.size for each in renditions))
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, len(sizes))
    for panel, size in zip(panels, sizes, strict=True):
        _draw_panel(panel, [each for each in renditions if each.size == size], present_setting)
        panel.set_title(f"{size} px")
    panels[0].legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_panel(panel: Axes, renditions: Sequence[Rendition], present_setting: int) -> None:
    for encoder, colour in _STYLES.items():
        curves = [each.curves[encoder.name] for each in renditions]
        kilobytes = [
            statistics.fmean(curve.at(setting).size for curve in curves) / 1000 for setting in encoder.settings
        ]
        scores = [
            statistics.fmean(curve.at(setting).scores[DECIDING] for curve in curves) for setting in encoder.settings
        ]
        panel.plot(kilobytes, scores, color=colour, label=encoder.name, marker="o", markersize=3)
        if encoder is PRESENT:
            here = encoder.settings.index(present_setting)
            panel.annotate(
                f"quality {present_setting}",
                (kilobytes[here], scores[here]),
                xytext=(12, -22),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-"},
            )
    panel.set_xlabel("mean KB")
    panel.set_ylabel(f"mean {DECIDING}")
    panel.grid(alpha=0.3)
