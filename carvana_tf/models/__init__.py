"""Networks: encoders, decoders and the weights that go into them."""
