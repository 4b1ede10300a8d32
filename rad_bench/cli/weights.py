"""The verb `weights`: fetch the weights of learned metrics."""

from __future__ import annotations

import click


@click.command()
@click.argument("metric", type=click.Choice(["lpips", "fvd"]))
def weights(metric: str) -> None:
    """Fetch the weights that METRIC needs into the user's cache, and verify them.

    lpips: 64 MB are downloaded, 10 MB kept; fvd: 47 MB and 51 MB.
    """
    from rad_bench.evaluation.fetch_weights import fetch_fvd, fetch_lpips
    from rad_bench.evaluation.fvd import fvd_unavailable
    from rad_bench.evaluation.perceptual import lpips_unavailable

    unavailable, fetch = {"lpips": (lpips_unavailable, fetch_lpips), "fvd": (fvd_unavailable, fetch_fvd)}[metric]
    if unavailable() is None:
        click.echo(f"{metric}: verified weights are here already")
        return
    click.echo(f"{metric}: verified weights are in {fetch()}")
