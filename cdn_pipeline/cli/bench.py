"""`cdn-pipeline bench`: which stage bounds this deployment."""

from rich.console import Console
from rich.text import Text

from cdn_pipeline.cli.sections import as_text, counted
from cdn_pipeline.observe.bottleneck import Pass, measure_stages, verdict
from cdn_pipeline.settings import Settings

_NAME_WIDTH = 18


def show_bottleneck(settings: Settings, console: Console, *, images: int) -> bool:
    """Measures with all stages and without each, and tells every pass when it is done; returns whether it could."""
    passes: list[Pass] = []
    for done in measure_stages(settings, images):
        if not passes:
            console.print(f"{counted(done.published, 'image')} of yours, through a scratch catalog on this machine:")
        passes.append(done)
        console.print(_line(done, passes[0]))
    if not passes:
        console.print("No source URL is alive: there is nothing to measure with (with the demo's data: `make dev`).")
        return False
    console.print(as_text(verdict(passes), style="bold"))
    return passes[0].published > 0


def _line(done: Pass, whole: Pass) -> Text:
    name = f"without {done.without}" if done.without else "all stages"
    gain = f"  {done.rate / whole.rate:.2f} ×" if done.without and whole.rate else ""
    line = Text(f"  {name:<{_NAME_WIDTH}} {done.rate:8.1f} images/s{gain}")
    for kind, count in sorted(done.failures.items()):
        line.append(f"  {count} {kind}", style="yellow")
    return line
