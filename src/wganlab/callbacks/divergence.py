"""Detection of divergence: losses or gradients that are not finite end a run at once."""

from pytorch_lightning import Trainer

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.callbacks.checkpoints import Checkpoints


def divergence(trainer: Trainer, module: AdversarialModule, every: int) -> str | None:
    """The first value that is not finite, its step and the last checkpoint, as a sentence; None if all are finite.

    On a GPU, where each check waits for the device, only every ``every``-th step checks all steps since the last row.
    """
    on_cpu = module.device.type == "cpu"
    if not (on_cpu or is_due(trainer, every)):
        return None
    found = module.first_not_finite(1 if on_cpu else every)
    if found is None:
        return None
    quantity, value, steps_ago = found
    savers = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]  # type: ignore[attr-defined]
    saved = savers[0].saved if savers else 0
    kept = f"the last finite checkpoint is that of step {saved}" if saved else "no checkpoint had been saved"
    return f"{quantity} is {value} at generator step {trainer.global_step - steps_ago}: training has diverged; {kept}"
