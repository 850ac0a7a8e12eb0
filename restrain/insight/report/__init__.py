"""Runs as one page that opens from the disk: what they reached and how, what they saw, what they got wrong."""

from restrain.insight.report.curves import Curves, Series, reduce
from restrain.insight.report.maps import Maps
from restrain.insight.report.page import Event, Gallery, Page, Picture, RecipeLine, RunPage, render
from restrain.insight.report.pictures import data_uri

__all__ = [
    "Curves",
    "Event",
    "Gallery",
    "Maps",
    "Page",
    "Picture",
    "RecipeLine",
    "RunPage",
    "Series",
    "data_uri",
    "reduce",
    "render",
]
