"""Metrics: functions of tensors, and :data:`METRICS`, the one table of what each column of metrics.csv is.

A metric of wganlab is one entry of the table. The columns of a user's own observers need none: they are drawn under
their names, in the table's default format and without a direction.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """What a column of metrics.csv is, and how reports show it."""

    title: str
    #: Heading in tables of results; empty: drawn, but not tabulated.
    short_title: str = ""
    #: Which values are better; None where the values say nothing of quality.
    direction: Literal["lower", "higher"] | None = None
    format: str = ".4g"
    #: A main result: its best value and the gap to it are tabulated, too, and every run is drawn.
    headline: bool = False
    #: Scores of samples, or of features of images; None for what is no score.
    protocol: Literal["distances", "features"] | None = None
    #: One line, shown beside the heading.
    meaning: str = ""
    #: Whether every metrics.csv has the column.
    always: bool = False

    @property
    def sign(self) -> int:
        """Factor that makes lower values the better ones."""
        return -1 if self.direction == "higher" else 1


#: Every metric by its column of metrics.csv, in the order of the columns.
METRICS = {
    "critic/loss": Metric(
        "Critic loss", "critic loss", "lower", meaning="penalties included; comparable between equal objectives only",
        always=True,
    ),
    "critic/wasserstein_estimate": Metric(
        "Wasserstein estimate (real score − fake score)", "W estimate", meaning="mean real score minus mean fake score",
        always=True,
    ),
    "critic/penalty": Metric("Penalty of the critic loss", always=True),
    "critic/real_score": Metric("Mean score of real samples", always=True),
    "critic/fake_score": Metric("Mean score of generated samples", always=True),
    "critic/gradient_norm": Metric("Mean gradient norm of the critic at interpolates", always=True),
    "critic/weights_at_bound": Metric("Share of critic weights at the clipping bound", format=".3f", always=True),
    "generator/loss": Metric(
        "Generator loss", "generator loss", "lower", meaning="comparable between equal objectives only", always=True
    ),
    "generator/learning_rate": Metric("Learning rate of the generator in the next step"),
    "critic/learning_rate": Metric("Learning rate of the critic in the next step"),
    "eval/emd": Metric(
        "Debiased earth mover's distance to real samples", "EMD", "lower", ".2f", True, "distances",
        "exact earth mover's distance, less the mean of those among real and among generated samples; 0 is ideal",
        always=True,
    ),
    "eval/emd_raw": Metric(
        "Earth mover's distance to real samples", "EMD raw", "lower", ".2f", False, "distances",
        "exact earth mover's distance between generated and real samples", always=True,
    ),
    "eval/emd_real": Metric(
        "Earth mover's distance between real samples", format=".2f", protocol="distances", always=True
    ),
    "eval/w2": Metric(
        "Wasserstein-2 distance to real samples", "W2", "lower", protocol="distances",
        meaning="exact, between generated and real points",
    ),
    "eval/modes": Metric(
        "Modes captured", "modes", "higher", ".0f", True, "distances",
        "modes that have a tenth of their share of the samples within 3 sd",
    ),
    "eval/high_quality": Metric(
        "Share of samples within 3 sd of a mode", "high quality", "higher", ".3f", False, "distances",
        "share of samples within 3 sd of a mode",
    ),
    "eval/mode_kl": Metric(
        "KL over modes (nats)", "KL over modes", "lower", ".3f", False, "distances",
        "KL divergence of the samples' modes from equal shares, in nats",
    ),
    "eval/fid": Metric(
        "Fréchet distance of features (FID)", "FID", "lower", ".4g", True, "features",
        "Fréchet distance between normal distributions fitted to real and generated features",
    ),
    "eval/kid": Metric(
        "Kernel distance of features (KID)", "KID", "lower", protocol="features",
        meaning="squared maximum mean discrepancy of features, cubic kernel; unbiased",
    ),
    "eval/kid_sd": Metric("Standard deviation of KID over its subsets", protocol="features"),
    "eval/inception_score": Metric(
        "Inception score", "inception score", "higher", ".2f", False, "features", "from 1 to the number of classes"
    ),
    "eval/precision": Metric(
        "Precision", "precision", "higher", ".3f", False, "features", "share of generated images near real ones"
    ),
    "eval/recall": Metric(
        "Recall", "recall", "higher", ".3f", False, "features", "share of real images near generated ones"
    ),
    "eval/density": Metric(
        "Density", "density", "higher", ".3f", False, "features", "as precision, less moved by outliers; 1 is ideal"
    ),
    "eval/coverage": Metric(
        "Coverage", "coverage", "higher", ".3f", False, "features", "as recall, less moved by outliers"
    ),
    "eval/confident": Metric(
        "Share of samples of a clear class", "clear class", "higher", ".3f", False, "features",
        "share of samples whose likeliest class has a probability of at least 0.9",
    ),
    "eval/classes": Metric(
        "Classes covered", "classes", "higher", ".0f", True, "features", "classes with a sample of a clear class"
    ),
    "eval/class_kl": Metric(
        "KL over classes (nats)", "KL over classes", "lower", ".3f", False, "features",
        "KL divergence of the samples' classes from those of real images, in nats",
    ),
    "eval/class_accuracy": Metric(
        "Accuracy of the requested class", "class accuracy", "higher", ".3f", False, "features",
        "share of samples that are taken for the class that was asked for",
    ),
    "eval/intra_fid": Metric(
        "FID within classes, mean over them", "FID within classes", "lower", ".4g", False, "features",
        "Fréchet distance of features within each class, mean over classes",
    ),
    "eval/memorisation": Metric(
        "Distance to training images / among them", "memorisation", None, ".3f", False, "distances",
        "median distance to the nearest training image, over that of training images to each other",
    ),
    "critic/heldout_loss": Metric("Critic loss on held-out samples, without penalties"),
    "critic/training_loss": Metric("Critic loss on training samples, without penalties"),
    "critic/overfitting": Metric("Share of the Wasserstein estimate that is lost on held-out samples"),
    "critic/potential_correlation": Metric("Correlation of the critic's values with the Kantorovich potential"),
    "critic/distance_found": Metric("Wasserstein estimate / lower bound of the Lipschitz constant / exact W1"),
    "critic/slope_real": Metric("Mean gradient norm of the critic at real samples"),
    "critic/slope_fake": Metric("Mean gradient norm of the critic at generated samples"),
    "critic/slope_sd": Metric("Standard deviation of the gradient norm at interpolates"),
    "critic/lipschitz_lower": Metric("Lower bound of the Lipschitz constant (steepest slope found)"),
    "critic/lipschitz_upper": Metric("Upper bound of the Lipschitz constant (product of spectral norms)"),
    "critic/estimate_per_lipschitz": Metric("Wasserstein estimate / lower bound of the Lipschitz constant"),
    "critic/gradient_growth": Metric("Growth of the gradient norm (decades per layer)"),
    "critic/layer_gradient": Metric("Gradient norm at each layer of the critic, last value"),
    "critic/layer_at_bound": Metric("Share of each layer's weights at the clipping bound, last value"),
    "speed/images_per_second": Metric("Real images seen by the critic per second", format=",.0f"),
}  # fmt: skip


def metric_of(column: str) -> Metric:
    """What a column of metrics.csv is; of one that the table does not know: its name, and no direction."""
    return METRICS.get(column) or Metric(column)


def objective_of(final: Mapping[str, float | None]) -> tuple[str, float] | None:
    """The score that a search minimises, and its value: ``eval/fid`` where features were scored, else ``eval/emd``.

    That is the headline with direction "lower" of each protocol. Not a number where summary.json has null.
    """
    for protocol in ("features", "distances"):
        for name, metric in METRICS.items():
            if (metric.protocol, metric.headline, metric.direction) == (protocol, True, "lower") and name in final:
                value = final[name]
                return name, math.nan if value is None else value
    return None
