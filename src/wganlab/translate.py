"""Configs of earlier versions in the words of today: the one place that knows them."""

from collections.abc import Mapping
from typing import Any

#: Target of version 1 -> today's, and its renamed keys; those renamed to None are dropped.
TARGETS: dict[str, tuple[str, dict[str, str | None]]] = {
    "wganlab.lipschitz.GradientPenalty": ("wganlab.regularizers.GradientPenalty", {"inference": "eval_mode"}),
    "wganlab.lipschitz.WeightClipping": ("wganlab.regularizers.WeightClipping", {}),
    "wganlab.networks.drawn.Generator": ("wganlab.networks.random_architecture.Generator", {}),
    "wganlab.networks.drawn.Critic": ("wganlab.networks.random_architecture.Critic", {}),
    "wganlab.adversarial.SharedPass": ("wganlab.alternation.SharedPass", {}),
    "wganlab.adversarial.ReusedLatents": ("wganlab.alternation.ReusedLatents", {}),
    "wganlab.adversarial.FixedGenerator": ("wganlab.alternation.FixedGenerator", {}),
    "wganlab.callbacks.diagnostics.CriticDiagnostics": (
        "wganlab.callbacks.diagnostics.CriticDiagnostics",
        {"closely": "detailed"},
    ),
    "wganlab.accelerator.build_trainer": ("wganlab.accelerator.build_trainer", {"strategy": None, "nodes": None}),
}
#: What loss.lipschitz held -> the name of the part in loss.regularizer; no part for the neutral element.
REGULARIZERS: dict[str, str | None] = {
    "wganlab.lipschitz.Unconstrained": None,
    "wganlab.lipschitz.GradientPenalty": "gradient_penalty",
    "wganlab.lipschitz.WeightClipping": "weight_clipping",
}
#: Keys that came later, with the values that change nothing.
NEUTRAL: dict[str, Any] = {
    "hold_out": 0,
    "trial": None,
    "drop_last": True,
    "reshuffle": "epoch",
    "extractor": {},
    "averaging": {},
    "augmentation": {},
}
#: What observers scored by before evaluations compared with samples held out.
SCORED = {
    "wganlab.callbacks.evaluation.Evaluation": ("split", "training"),
    "wganlab.callbacks.checkpoints.Checkpoints": ("monitor", "eval/emd_raw"),
}
#: Keys of a target that came later, with the values that were fixed before.
FIXED: dict[str, dict[str, Any]] = {"wganlab.networks.upsample_dcgan.Generator": {"output_bias": True}}


#: Columns of metrics.csv before eval/emd was debiased -> their names since.
COLUMNS = {"eval/emd": "eval/emd_raw", "eval/emd_debiased": "eval/emd"}


def translate_columns(found: Mapping[str, Any]) -> dict[str, Any]:
    """Values by column, of this or an earlier version, by the columns of this version."""
    if "eval/emd" not in found or "eval/emd_raw" in found:
        return dict(found)
    return {COLUMNS.get(key, key): value for key, value in found.items()}


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config of this or an earlier version as one of this version; what is no such config stays as it is."""
    if not isinstance(config.get("loss"), Mapping):
        return dict(config)
    loss = dict(config["loss"])
    if "lipschitz" in loss:
        part = loss.pop("lipschitz")
        name = REGULARIZERS.get(part.get("_target_"), "regularizer")
        loss["regularizer"] = {name: part} if name else {}
    logger = config.get("logger")
    if isinstance(logger, Mapping) and "_target_" in logger:  # when a run had one at most
        config = {**config, "logger": {"wandb": logger}}
    translated = translate_node({**config, "loss": {"regularizer": {}, **loss}})
    if "trial" not in config:  # whose scores were of other samples, and by other names
        for part in (translated.get("callbacks") or {}).values():
            if isinstance(part, dict) and part.get("_target_") in SCORED:
                key, value = SCORED[part["_target_"]]
                part |= {key: value} if part.get(key, "eval/emd") == "eval/emd" else {}
    return {**NEUTRAL, **translated}


def translate_node(node: Any) -> Any:
    """Rename the targets below a node, and their keys."""
    if isinstance(node, list):
        return [translate_node(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    target, renamed = TARGETS.get(node.get("_target_", ""), (node.get("_target_"), {}))
    names = {key: renamed.get(key, key) for key in node}
    translated = {name: translate_node(node[key]) for key, name in names.items() if name is not None}
    return {**FIXED.get(str(target), {}), **translated} | ({"_target_": target} if "_target_" in node else {})
