"""Metrics: functions of images, points or features. They need no trainer, and no run."""

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """What a column of metrics.csv shows."""

    title: str
    better: Literal["lower", "higher"] | None  # None: says nothing of quality by itself
    form: str = ".4g"


#: Everything that may be plotted, tabulated or claimed, by its name in metrics.csv.
METRICS = {
    "eval/emd": Metric("Earth mover's distance to real samples", "lower", ".2f"),
    "eval/w2": Metric("Wasserstein-2 distance to real samples", "lower"),
    "eval/modes": Metric("Modes captured", "higher", ".0f"),
    "eval/high_quality": Metric("Share of samples within 3 sd of a mode", "higher", ".3f"),
    "eval/mode_kl": Metric("KL over modes (nats)", "lower", ".3f"),
    "eval/fid": Metric("Fréchet distance of features (FID)", "lower"),
    "eval/kid": Metric("Kernel distance of features (KID)", "lower"),
    "eval/inception_score": Metric("Inception score", "higher", ".2f"),
    "eval/precision": Metric("Precision", "higher", ".3f"),
    "eval/recall": Metric("Recall", "higher", ".3f"),
    "eval/density": Metric("Density", "higher", ".3f"),
    "eval/coverage": Metric("Coverage", "higher", ".3f"),
    "eval/confident": Metric("Share of samples of a clear class", "higher", ".3f"),
    "eval/classes": Metric("Classes covered", "higher", ".0f"),
    "eval/class_kl": Metric("KL over classes (nats)", "lower", ".3f"),
    "eval/memorisation": Metric("Distance to training images / among them", None, ".3f"),
    "critic/wasserstein_estimate": Metric("Wasserstein estimate (real score − fake score)", None),
    "critic/loss": Metric("Critic loss", None),
    "critic/penalty": Metric("Gradient penalty", None),
    "critic/heldout_loss": Metric("Critic loss on held-out samples, scores alone", None),
    "critic/training_loss": Metric("Critic loss on training samples, scores alone", None),
    "critic/overfitting": Metric("Share of the Wasserstein estimate that is gone on held-out samples", None),
    "critic/value_density": Metric("Rank correlation of the critic's values with the density of the data", None),
    "generator/loss": Metric("Generator loss", None),
    "critic/gradient_norm": Metric("Mean slope of the critic at interpolates", None),
    "critic/slope_real": Metric("Mean slope of the critic at real samples", None),
    "critic/slope_fake": Metric("Mean slope of the critic at generated samples", None),
    "critic/slope_sd": Metric("Standard deviation of the slope at interpolates", None),
    "critic/lipschitz_lower": Metric("Steepest slope seen", None),
    "critic/lipschitz_upper": Metric("Product of spectral norms", None),
    "critic/estimate_per_lipschitz": Metric("Wasserstein estimate / steepest slope seen", None),
    "critic/gradient_growth": Metric("Growth of the gradient's norm (decades per layer)", None),
    "critic/weights_at_bound": Metric("Share of critic weights at the bound", None, ".3f"),
}
