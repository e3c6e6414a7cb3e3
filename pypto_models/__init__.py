"""PyPTO Models: decode layers written once as tile code, compiled for every target."""

__version__ = "0.1.0"
