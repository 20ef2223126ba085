"""carvana_tf: photos plus some hand-made masks in, masks for all the rest out."""

__version__ = "0.2.0"
