"""Cut-outs: the object of a photo with a soft edge, before nothing or another background."""
