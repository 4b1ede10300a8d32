"""The verb `weights`: fetch the weights of learned metrics."""

from __future__ import annotations

import click


@click.command()
@click.argument("metric", type=click.Choice(["lpips"]))
def weights(metric: str) -> None:
    """Fetch the weights that METRIC needs into the user's cache (64 MB are downloaded, 10 MB kept), and verify them."""
    from rad_bench.evaluation.fetch_weights import fetch_lpips
    from rad_bench.evaluation.perceptual import lpips_unavailable

    if lpips_unavailable() is None:
        click.echo(f"{metric}: verified weights are here already")
        return
    click.echo(f"{metric}: verified weights are in {fetch_lpips()}")
