"""What the templates are filled with: pictures, and reasons for what is missing."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from project.errors import UserError
from project.extras.look import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 144  # shown at 96: sharp on the finer screens of phones


@dataclass(frozen=True)
class Missing:
    """Stands where something could not be made; the page shows the reason in its place."""

    why: str


@dataclass(frozen=True)
class Picture:
    """An image inside the page."""

    source: str  # data URI
    width: int  # CSS pixels
    height: int
    says: str  # its main finding in words, for those who cannot see it


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder. Every value is escaped: class names, paths and settings are the user's."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["missing"] = lambda value: isinstance(value, Missing)
    return environment.get_template(template).render(**values)


def attempt(make: Callable[..., Any], *inputs: Any) -> Any:
    """`make(*inputs)`, or why not: the reason of an input that is missing, or the error.

    Every error counts, because networks and data sources are the user's own, and the rest of the page is worth more.
    """
    for value in inputs:
        if isinstance(value, Missing):
            return value
    try:
        return make(*inputs)
    except UserError as error:
        return Missing(str(error))
    except Exception as error:
        return Missing(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def picture(figure: "Figure", says: str) -> Picture:
    """A figure as PNG with a palette, which takes a third of the bytes.

    Args:
        figure: What to show.
        says: Its main finding in words.
    """
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    image = Image.fromarray(figures.pixels(figure, DPI)).quantize(256, Image.Quantize.MEDIANCUT)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return Picture(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", width, height, says)


def curves(series: Mapping[str, Sequence[tuple[float, float]]], ylabel: str) -> Picture | Missing:
    """Lines over the epochs, with where each begins and ends in words.

    Args:
        series: Name -> points (epoch, value).
        ylabel: Beside the y axis.
    """
    if not series:
        return Missing("the run has no readable TensorBoard event file with them")
    shown = list(series.items())[:6]
    says = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in shown)
    return picture(figures.curves(series, "epoch", ylabel), says)
