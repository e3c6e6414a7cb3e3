"""PyPTO Models: decode layers written once as tile code, compiled for every target."""
