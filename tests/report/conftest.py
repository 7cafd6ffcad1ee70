"""Pictures as figures."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hyperjax.report import plots


@pytest.fixture
def as_figure(monkeypatch):
    """Have the functions return the figure, laid out, instead of its picture."""

    def draw(figure, kind):
        FigureCanvasAgg(figure).draw()
        return figure

    monkeypatch.setattr(plots, "render", draw)
