"""Networks: encoders, decoders and the weights that go into them."""

from carvana_tf import devices as devices  # first of all: it starts the backend quietly
