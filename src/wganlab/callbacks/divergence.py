"""Detection of divergence: losses or gradients that are not finite end a run at once."""

import torch
from pytorch_lightning import Trainer

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.callbacks.checkpoints import Checkpoints

#: Where fp16 gradients overflow for all that the losses are scaled by less than this, training has diverged.
LEAST_SCALE = 2.0**-16


def divergence(trainer: Trainer, module: AdversarialModule, every: int) -> str | None:
    """The first value that is not finite, its step and the last checkpoint, as a sentence; None if all are finite.

    On a GPU, where each check waits for the device, only every ``every``-th step checks all steps since the last row.
    """
    on_cpu = module.device.type == "cpu"
    if not (on_cpu or is_due(trainer, every)):
        return None
    found = first_not_finite(module, 1 if on_cpu else every)
    if found is None:
        return None
    quantity, value, steps_ago = found
    savers = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]  # type: ignore[attr-defined]
    saved = savers[0].saved if savers else 0
    kept = f"the last finite checkpoint is that of step {saved}" if saved else "no checkpoint had been saved"
    return f"{quantity} is {value} at generator step {trainer.global_step - steps_ago}: training has diverged; {kept}"


def first_not_finite(module: AdversarialModule, steps: int) -> tuple[str, float, int] | None:
    """What is not finite in the last so many steps since the last row: its name, its value, and how many steps ago.

    Losses are looked at in the order in which they were computed; gradients are those of the last step, of biases
    and scales alone where there are any: what goes wrong on the way back passes through them, and to read all
    takes a twentieth of a step. A step of fp16 that overflows is left out, and is well. None when all is well.
    """
    if found := module.window.first_not_finite(steps):
        return found
    if module.scaler is not None and module.scaler.get_scale() >= LEAST_SCALE:
        return None  # the step was left out, as gradients had overflowed, and the next is scaled by less
    for name in ("critic", "generator"):
        gradients = [p.grad for p in module.weights[name] if p.grad is not None]
        gradients = [gradient for gradient in gradients if gradient.dim() < 2] or gradients
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm() if gradients else torch.zeros(())
        if not torch.isfinite(norm):
            return f"the norm of the {name}'s gradient", norm.item(), 0
    return None
