"""Controls: frames that no model generated, scored like a model's. frames.parquet has their names as `block`."""

COPY_LAST = "copy-last"  # repeats the last frame of the context
CEILING = "autoencoder"  # the truth, encoded and decoded
CONTROLS = (COPY_LAST, CEILING)
