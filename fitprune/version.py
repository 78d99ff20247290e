"""The one place that holds the version; it is written into every recipe and statistics file as provenance."""

__version__ = "0.2.0"
