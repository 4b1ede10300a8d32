"""Controls: what frames.parquet holds under these names as `block`, scored like a model and trained by none."""

COPY_LAST = "copy-last"  # repeats the last frame of the context
CEILING = "autoencoder"  # the truth, encoded and decoded
CONTROLS = (COPY_LAST, CEILING)
